"""Open data: WeChat's own vectors, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from authsvc.errors import DecryptFailed, SignatureInvalid
from authsvc.wechat import MAX_ENCRYPTED_BYTES, decrypt, sign, verify_signature
from tests.support.clock import NOW

# WeChat's own demo of WXBizDataCrypt, linked from its page on signatures.
OFFICIAL_APPID = "wx4f4bc4dec97d474b"
OFFICIAL_KEY = "tiihtNczf5v6AKRyjwEUhQ=="
OFFICIAL_IV = "r7BXXKkLb8qrSNn05n0qiA=="
OFFICIAL_OPENID = "oGZUI0egBJY1zhBYw2KhdUfwVJJE"
OFFICIAL_TIME = 1477314187
OFFICIAL_DATA = (
    "CiyLU1Aw2KjvrjMdj8YKliAjtP4gsMZMQmRzooG2xrDcvSnxIMXFufNstNGTyaGS9uT5geRa0W4oTOb1WT7fJlAC+oNPdbB+3hVbJSRgv+4lGOET"
    "KUQz6OYStslQ142dNCuabNPGBzlooOmB231qMM85d2/fV6ChevvXvQP8Hkue1poOFtnEtpyxVLW1zAo6/1Xx1COxFvrc2d7UL/lmHInNlxuacJXw"
    "u0fjpXfz/YqYzBIBzD6WUfTIF9GRHpOn/Hz7saL8xz+W//FRAUid1OksQaQx4CMs8LOddcQhULW4ucetDf96JcR3g0gfRK4PC7E/r7Z6xNrXd2UI"
    "eorGj5Ef7b1pJAYB6Y5anaHqZ9J6nKEBvB4DnNLIVWSgARns/8wR2SiRS7MNACwTyrGvt9ts8p12PKFdlqYTopNHR1Vf7XjfhQlVsAJdNiKdYmYV"
    "oKlaRv85IfVunYzO0IKXsyl7JCUjCpoG20f0a04COwfneQAGGwd5oa+T8yO5hzuyDb/XcxxmK01EpqOyuxINew=="
)
OFFICIAL_RAW_DATA = (
    '{"nickName":"Band","gender":1,"language":"zh_CN","city":"Guangzhou","province":"Guangdong","country":"CN",'
    '"avatarUrl":"http://wx.qlogo.cn/mmopen/vi_32/1vZvI39NWFQ9XM4LtQpFrQJ1xlgZxx3w7bQxKARol6503Iuswjjn6nIGBiaycAjAtpuj'
    'xyzYsrztuuICqIM5ibXQ/0"}'
)

APPID, OPENID = "wx1234567890abcdef", "oABC-def_123"
KEY = base64.b64encode(b"0123456789abcdef").decode()
IV = base64.b64encode(bytes(range(16))).decode()
WATERMARK = {"appid": APPID, "timestamp": NOW}


def _padded(text: bytes) -> bytes:
    count = 16 - len(text) % 16
    return text + bytes([count]) * count


def _encrypt(padded: bytes, key: str = KEY) -> str:
    encryptor = Cipher(AES(base64.b64decode(key)), CBC(base64.b64decode(IV))).encryptor()
    return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()


def _open_data(members: dict[str, Any]) -> str:
    return _encrypt(_padded(json.dumps(members, ensure_ascii=False).encode()))


def _decrypt(data: str, iv: str = IV, key: str = KEY, *, window_s: int = 600) -> dict[str, Any]:
    return decrypt(data, iv, key, appid=APPID, openid=OPENID, now=NOW, window_s=window_s)


def _official(data: str = OFFICIAL_DATA, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"appid": OFFICIAL_APPID, "openid": OFFICIAL_OPENID, "now": OFFICIAL_TIME, "window_s": 600}
    return decrypt(data, OFFICIAL_IV, OFFICIAL_KEY, **asked | changes)


def test_wechats_own_encrypted_data_open() -> None:
    data = _official()
    assert (data["openId"], data["nickName"]) == (OFFICIAL_OPENID, "Band")
    assert data["unionId"] == "ocMvos6NjeKLIBqg5Mr9QjxrP1FA"
    assert data["watermark"] == {"timestamp": OFFICIAL_TIME, "appid": OFFICIAL_APPID}


def test_wechats_own_encrypted_data_open_with_spaces_in_the_place_of_plus() -> None:
    assert "+" in OFFICIAL_DATA
    assert _official(OFFICIAL_DATA.replace("+", " ")) == _official()


@pytest.mark.parametrize(
    "changes", [{"appid": APPID}, {"openid": OPENID}, {"now": OFFICIAL_TIME + 601}, {"now": OFFICIAL_TIME - 601}]
)
def test_wechats_own_encrypted_data_are_refused_for_another_app_user_or_time(changes: dict[str, Any]) -> None:
    with pytest.raises(DecryptFailed):
        _official(**changes)


def test_wechats_own_raw_data_have_their_signature() -> None:
    verify_signature(OFFICIAL_RAW_DATA, "75e81ceda165f4ffa64f4068af58c64b8f54b88c", "HyVFkGl5F5OQWJZZaNzBBg==")


def test_wechats_own_request_body_has_its_signature() -> None:
    expected = "654571f79995b2ce1e149e53c0a33dc39c0a74090db514261454e8dbe432aa0b"
    assert sign('{"foo":"bar"}', "o0q0otL8aEzpcZL/FT9WsQ==") == expected
    assert sign("", OFFICIAL_KEY) == "7154f9f8b4b76b92f541cbf0e37d48840fa06e5e42da92a6f80168a1516a4735"


@pytest.mark.parametrize(
    ("raw_data", "signature"),
    [
        (OFFICIAL_RAW_DATA + " ", "75e81ceda165f4ffa64f4068af58c64b8f54b88c"),
        (OFFICIAL_RAW_DATA, "75E81CEDA165F4FFA64F4068AF58C64B8F54B88C"),
        (OFFICIAL_RAW_DATA, "75e81ceda165f4ffa64f4068af58c64b8f54b88d"),
        (OFFICIAL_RAW_DATA, "75e81ceda165f4ffa64f4068af58c64b8f54b88"),
        (OFFICIAL_RAW_DATA, ""),
        (OFFICIAL_RAW_DATA, "签名"),
        ("", "75e81ceda165f4ffa64f4068af58c64b8f54b88c"),
    ],
)
def test_another_text_or_signature_is_refused(raw_data: str, signature: str) -> None:
    with pytest.raises(SignatureInvalid):
        verify_signature(raw_data, signature, "HyVFkGl5F5OQWJZZaNzBBg==")


@pytest.mark.parametrize(
    "members",
    [
        {"openId": OPENID},
        {"phoneNumber": "13800138000"},
        {"openGId": "tGAVqp0000"},
        {"nickName": "小程序🎉", "deep": [{"a": [1.5, None, True]}]},
    ],
)
def test_data_of_any_kind_come_out_as_they_went_in(members: dict[str, Any]) -> None:
    assert _decrypt(_open_data(members | {"watermark": WATERMARK})) == members | {"watermark": WATERMARK}


def test_a_raw_control_character_is_no_json() -> None:
    # A block of noise has them; RFC 8259, 7, wants a backslash.
    text = b'{"nickName": "a%sb", "watermark": %s}'
    watermark = json.dumps(WATERMARK).encode()
    assert _decrypt(_encrypt(_padded(text % (b"\\t", watermark))))["nickName"] == "a\tb"
    for raw in (b"\t", b"\x01"):
        with pytest.raises(DecryptFailed):
            _decrypt(_encrypt(_padded(text % (raw, watermark))))


@pytest.mark.parametrize(
    ("off_s", "window_s", "good"), [(600, 600, True), (601, 600, False), (1, 1, True), (2, 1, False)]
)
@pytest.mark.parametrize("sign_", [1, -1])
def test_data_are_good_within_the_window_and_not_a_second_longer(
    off_s: int, window_s: int, good: bool, sign_: int
) -> None:
    data = _open_data({"watermark": {"appid": APPID, "timestamp": NOW + sign_ * off_s}})
    if good:
        assert _decrypt(data, window_s=window_s)
    else:
        with pytest.raises(DecryptFailed):
            _decrypt(data, window_s=window_s)


GOOD = json.dumps({"watermark": WATERMARK}).encode()
WHOLE = _padded(GOOD)

BAD_PADDINGS = {
    "of zero": GOOD.ljust(79) + b"\0",
    "of seventeen": GOOD.ljust(79) + b"\x11",
    "whose last bytes differ": WHOLE[:-2] + b"\x01" + WHOLE[-1:],
    "of a whole block that differs": GOOD.ljust(80) + b"\x10" * 14 + b"\x0f\x10",
    "of one byte too few": GOOD.ljust(78) + b"\x03\x03",
    "that is none": GOOD.ljust(80),
}


@pytest.mark.parametrize("name", BAD_PADDINGS)
def test_a_padding_that_is_not_whole_is_refused(name: str) -> None:
    assert len(BAD_PADDINGS[name]) % 16 == 0
    with pytest.raises(DecryptFailed, match="made under another session_key"):
        _decrypt(_encrypt(BAD_PADDINGS[name]))


BAD_TEXTS = {
    "not UTF-8": b'{"n": "\xff", "watermark": {}}',
    "no JSON": b"openId=o",
    "a list": b"[]",
    "null": b"null",
    "a member twice": b'{"a": 1, "a": 2, "watermark": %s}' % json.dumps(WATERMARK).encode(),
    "deep": b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_what_is_no_json_object_is_refused(name: str) -> None:
    with pytest.raises(DecryptFailed):
        _decrypt(_encrypt(_padded(BAD_TEXTS[name])))


BAD_MEMBERS: list[dict[str, Any]] = [
    {},
    {"watermark": None},
    {"watermark": [APPID, NOW]},
    {"watermark": {"timestamp": NOW}},
    {"watermark": {"appid": "wx0000000000000000", "timestamp": NOW}},
    {"watermark": {"appid": [APPID], "timestamp": NOW}},
    {"watermark": {"appid": APPID}},
    {"watermark": {"appid": APPID, "timestamp": None}},
    {"watermark": {"appid": APPID, "timestamp": str(NOW)}},
    {"watermark": {"appid": APPID, "timestamp": float(NOW)}},
    {"watermark": {"appid": APPID, "timestamp": True}},
    {"watermark": WATERMARK, "openId": "oSomebodyElse"},
    {"watermark": WATERMARK, "openId": None},
    {"watermark": WATERMARK, "openId": [OPENID]},
]


@pytest.mark.parametrize("members", BAD_MEMBERS)
def test_data_without_their_watermark_or_of_another_user_are_refused(members: dict[str, Any]) -> None:
    with pytest.raises(DecryptFailed):
        _decrypt(_open_data(members))


DATA = _open_data({"watermark": WATERMARK})

BAD_CALLS: dict[str, tuple[str, str, str]] = {
    "no data": ("", IV, KEY),
    "no iv": (DATA, "", KEY),
    "an iv of 15 bytes": (DATA, base64.b64encode(bytes(15)).decode(), KEY),
    "an iv of 32 bytes": (DATA, base64.b64encode(bytes(32)).decode(), KEY),
    "a key of 32 bytes": (DATA, IV, base64.b64encode(bytes(32)).decode()),
    "half a block": (base64.b64encode(bytes(24)).decode(), IV, KEY),
    "too many blocks": (base64.b64encode(bytes(MAX_ENCRYPTED_BYTES + 16)).decode(), IV, KEY),
    "base64url": (DATA.replace("+", "-").replace("/", "_") + "-A==", IV, KEY),
    "no padding of base64": (DATA.rstrip("=") + "A", IV, KEY),
    "a line break": (DATA[:20] + "\n" + DATA[20:], IV, KEY),
    "not ASCII": (DATA[:-1] + "é", IV, KEY),
    "another key": (DATA, IV, base64.b64encode(b"fedcba9876543210").decode()),
    "another iv": (DATA, base64.b64encode(bytes(16)).decode(), KEY),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_what_is_not_base64_of_whole_blocks_under_this_key_is_refused(name: str) -> None:
    with pytest.raises(DecryptFailed):
        _decrypt(*BAD_CALLS[name])


def test_no_byte_of_the_ciphertext_can_be_changed_into_other_data_of_the_same_user() -> None:
    # CBC authenticates nothing; what is left is that a changed block is noise, and the watermark.
    data = bytearray(base64.b64decode(_open_data({"openId": OPENID, "watermark": WATERMARK})))
    for position in range(len(data)):
        data[position] ^= 1
        try:
            found = _decrypt(base64.b64encode(bytes(data)).decode())
            assert (found["openId"], found["watermark"]["appid"]) == (OPENID, APPID)
        except DecryptFailed:
            pass
        data[position] ^= 1


@pytest.mark.parametrize("blocks_more", [0, 1])
def test_data_are_read_up_to_a_size_and_refused_beyond_it(blocks_more: int) -> None:
    around = len(json.dumps({"filler": "", "watermark": WATERMARK}))
    members = {"filler": "x" * (MAX_ENCRYPTED_BYTES - 1 - around + 16 * blocks_more), "watermark": WATERMARK}
    data = _open_data(members)
    assert len(base64.b64decode(data)) == MAX_ENCRYPTED_BYTES + 16 * blocks_more
    if blocks_more:
        with pytest.raises(DecryptFailed):
            _decrypt(data)
    else:
        assert _decrypt(data) == members


def test_true_is_no_timestamp() -> None:
    data = _open_data({"watermark": {"appid": APPID, "timestamp": True}})
    with pytest.raises(DecryptFailed):
        decrypt(data, IV, KEY, appid=APPID, openid=OPENID, now=1, window_s=600)
