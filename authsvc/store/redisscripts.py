"""What a RedisStore does in one step: scripts that Redis runs without anybody in between (EVAL, Lua 5.1).

All keys of a script are one user's, and so in one slot of a cluster: the user's digest is their hash tag. Keys of
logins are made from a prefix and the sid; which logins there are is in the index, so they cannot be named beforehand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    text: str
    sha: str


def _script(text: str) -> Script:
    # SHA-1 is the name that Redis gives to a script.
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# Times are compared as numbers and passed on as the texts they came as: Lua would write large ones with an exponent.
_COMMON: Final = """
local function add(login, index, prefix, sid, sealed, started, created, expires)
  redis.call('HSET', login, 'sealed', sealed, 'started_at_us', started, 'created_at', created, 'expires_at', expires)
  redis.call('EXPIREAT', login, expires)
  redis.call('ZADD', index, started, sid)
end

-- Drops what is over at `now` (nothing for none) and all but the last `most`; the index ends with its last login.
local function tidy(index, prefix, now, most)
  local kept, last = 0, '0'
  for _, sid in ipairs(redis.call('ZREVRANGE', index, 0, -1)) do
    local ends = redis.call('HGET', prefix .. sid, 'expires_at')
    if not ends or (now and tonumber(ends) <= tonumber(now)) or kept == most then
      redis.call('DEL', prefix .. sid)
      redis.call('ZREM', index, sid)
    else
      kept = kept + 1
      if tonumber(ends) > tonumber(last) then last = ends end
    end
  end
  if kept > 0 then redis.call('EXPIREAT', index, last) end
end
"""

PUT: Final = _script(
    _COMMON
    + """
local user, ban, index, login = unpack(KEYS)
local appid, openid, sid, sealed, started, created, expires, unionid, prefix, most = unpack(ARGV)
local state = redis.call('HGET', user, 'state')
if state == '0' or redis.call('EXISTS', ban) == 1 then return 'banned' end
local there = redis.call('HMGET', login, 'sealed', 'started_at_us')
if there[1] then
  -- The answer got lost, and it is said again.
  return there[1] == sealed and there[2] == started and 'kept' or 'taken'
end
if not state then
  redis.call('HSET', user, 'appid', appid, 'openid', openid, 'state', '1', 'state_since', '0',
    'first_login_at', created, 'last_login_at', created)
elseif tonumber(redis.call('HGET', user, 'last_login_at')) < tonumber(created) then
  redis.call('HSET', user, 'last_login_at', created)
end
if unionid ~= '' then redis.call('HSET', user, 'unionid', unionid) end
add(login, index, prefix, sid, sealed, started, created, expires)
tidy(index, prefix, created, tonumber(most))
return 'kept'
"""
)

LOGINS: Final = _script("""
local found = {}
for _, sid in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, -1)) do
  local row = redis.call('HMGET', ARGV[1] .. sid, 'sealed', 'started_at_us', 'created_at', 'expires_at')
  if row[1] then found[#found + 1] = {sid, row[1], row[2], row[3], row[4]} end
end
return found
""")

REPLACE: Final = _script(
    _COMMON
    + """
local user, index = unpack(KEYS)
local prefix, gone = ARGV[1], tonumber(ARGV[2])
local sid, sealed, started, created, expires = unpack(ARGV, 3 + 2 * gone)
local there = sid and redis.call('HGET', prefix .. sid, 'sealed')
for n = 3, 1 + 2 * gone, 2 do
  if ARGV[n] == sid and ARGV[n + 1] == there then there = false end
end
-- The same is there if it was done, and is said again because the answer got lost.
if there then return there == sealed and 'kept' or 'taken' end
for n = 3, 1 + 2 * gone, 2 do
  local login = prefix .. ARGV[n]
  if redis.call('HGET', login, 'sealed') == ARGV[n + 1] then redis.call('DEL', login) end
end
local state = redis.call('HGET', user, 'state')
if sid and state and state ~= '0' then
  add(prefix .. sid, index, prefix, sid, sealed, started, created, expires)
end
tidy(index, prefix, nil, nil)
return 'kept'
"""
)

BAN: Final = _script("""
local user, ban = unpack(KEYS)
local appid, openid, at = unpack(ARGV)
if redis.call('EXISTS', user) == 1 then
  if redis.call('HGET', user, 'state') ~= '0' then redis.call('HSET', user, 'state', '0', 'state_since', at) end
elseif redis.call('EXISTS', ban) == 0 then
  redis.call('HSET', user, 'appid', appid, 'openid', openid, 'state', '0', 'state_since', at,
    'first_login_at', '0', 'last_login_at', '0')
end
return 'kept'
""")

UNBAN: Final = _script("""
local user, ban = unpack(KEYS)
redis.call('DEL', ban)
local row = redis.call('HMGET', user, 'state', 'first_login_at')
if row[1] == '0' then
  if row[2] == '0' then
    redis.call('DEL', user)
  else
    redis.call('HSET', user, 'state', '1', 'state_since', ARGV[1])
  end
end
return 'kept'
""")

FORGET: Final = _script("""
local user, ban, index = unpack(KEYS)
local row = redis.call('HMGET', user, 'state', 'state_since')
local gone = 0
for _, sid in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  gone = gone + redis.call('DEL', ARGV[1] .. sid)
end
redis.call('DEL', index, user)
if row[1] == '0' then redis.call('SET', ban, row[2], 'NX') end
return gone
""")

MERGE_USER: Final = _script("""
local appid, openid, state, since, unionid, first, last = unpack(ARGV)
local here = redis.call('HMGET', KEYS[1], 'state', 'state_since', 'first_login_at', 'last_login_at', 'unionid')
if here[1] then
  local is_later = tonumber(since) - tonumber(here[2])
  if is_later < 0 or (is_later == 0 and state ~= '0') then state, since = here[1], here[2] end
  if here[3] ~= '0' and (first == '0' or tonumber(here[3]) < tonumber(first)) then first = here[3] end
  if tonumber(last) <= tonumber(here[4]) then
    last = here[4]
    unionid = here[5] or unionid
  end
end
redis.call('HSET', KEYS[1], 'appid', appid, 'openid', openid, 'state', state, 'state_since', since,
  'first_login_at', first, 'last_login_at', last)
if unionid ~= '' then redis.call('HSET', KEYS[1], 'unionid', unionid) end
return 'kept'
""")

MERGE_LOGIN: Final = _script(
    _COMMON
    + """
local login, index = unpack(KEYS)
local prefix, sid, sealed, started, created, expires, most = unpack(ARGV)
if redis.call('EXISTS', login) == 0 then
  add(login, index, prefix, sid, sealed, started, created, expires)
  tidy(index, prefix, nil, tonumber(most))
end
return 'kept'
"""
)

DROP_LOGIN: Final = _script("""
local login, index = unpack(KEYS)
if redis.call('HGET', login, 'sealed') ~= ARGV[2] then return 0 end
redis.call('ZREM', index, ARGV[1])
return redis.call('DEL', login)
""")

SHARE: Final = _script("""
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'expires_at', ARGV[2])
redis.call('EXPIREAT', KEYS[1], ARGV[2])
return 'kept'
""")

SHARE_FIRST: Final = _script("""
local there = redis.call('HMGET', KEYS[1], 'value', 'expires_at')
if there[1] and tonumber(there[2]) > tonumber(ARGV[3]) then
  -- The answer got lost, and it is said again.
  return there[1] == ARGV[1] and there[2] == ARGV[2] and 1 or 0
end
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'expires_at', ARGV[2])
redis.call('EXPIREAT', KEYS[1], ARGV[2])
return 1
""")

UNSHARE: Final = _script("""
local there = redis.call('HMGET', KEYS[1], 'value', 'expires_at')
if there[1] == ARGV[1] and there[2] == ARGV[2] then redis.call('DEL', KEYS[1]) end
return 'kept'
""")
