// What the user is told, by the code of what went wrong: those of auth.js, then those of the service.

const NETWORK = '网络不通或太慢，请检查网络后再试'
const AGAIN = '登录没有成功，请再试一次'
const LATER = '服务暂时不可用，请稍后再试'
const OURS = '小程序出了点问题，请联系客服'
const PHONE = '没有拿到手机号，请再点一次按钮'

/** @type {Record<string, string>} */
const TEXTS = {
  offline: NETWORK,
  timeout: NETWORK,
  wx_login_failed: '登录没有成功，请检查网络后再试', // without a network it is the first to fail
  no_code: AGAIN,
  bad_answer: LATER,
  given_up: LATER,
  logged_out: '已退出登录',

  code_invalid: AGAIN,
  code_used: AGAIN,
  missing: AGAIN,
  malformed: AGAIN,
  revoked: AGAIN,
  invalid: AGAIN,
  expired: AGAIN,
  session_key_gone: AGAIN,
  decrypt_failed: AGAIN,
  request_timeout: NETWORK,
  user_blocked: '微信判断这个账号有风险，暂时不能登录',
  user_banned: '这个账号已停用，如有疑问请联系客服',
  rate_limited: '操作太频繁，请稍后再试',
  phone_code_invalid: PHONE,

  wechat_busy: LATER,
  wechat_quota: LATER,
  wechat_timeout: LATER,
  wechat_error: LATER,
  wechat_bad_reply: LATER,
  wechat_config: LATER,
  store_unavailable: LATER,
  keys_unusable: LATER,
  overloaded: LATER,
  internal_error: LATER,

  bad_request: OURS,
  not_found: OURS,
  method_not_allowed: OURS,
  payload_too_large: OURS,
  unsupported_media_type: OURS,
  misdirected_request: OURS,
  ops_token_invalid: OURS,
  service_token_invalid: OURS
}

/**
 * @param {{ code?: string, retryAfter?: number }} error an AuthError, or what the service answered
 * @returns {string} a sentence for the user; with the code, which whoever is asked for help can look up
 */
function explain ({ code = 'unknown', retryAfter = 0 }) {
  const wait = retryAfter > 90 ? `（约 ${Math.ceil(retryAfter / 60)} 分钟后）` : retryAfter > 0 ? `（约 ${Math.ceil(retryAfter)} 秒后）` : ''
  return `${Object.prototype.hasOwnProperty.call(TEXTS, code) ? TEXTS[code] : LATER}${wait} [${code}]`
}

module.exports = { explain, TEXTS }
