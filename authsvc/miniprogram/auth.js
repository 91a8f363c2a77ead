/** Login of a WeChat mini-program with authsvc. Copy this file: it needs no other and no build. */
'use strict'

const TRIES = 3 // of one login
const LONGEST_WAIT = 10 // seconds within a login; where more is left, it fails at once
const GIVE_UP = 300 // seconds, after a second 401 in a row
const MOST_LOGINS = 20 // in that time: no mistake loops faster
const BASE64URL = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'

/**
 * @typedef {{openid: string, appid: string, exp: number, iat: number, expires_in: number, [more: string]: any}} Claims
 * @typedef {Omit<WechatMiniprogram.RequestOption<any>, 'fail'> &
 *   {sessionKey?: boolean, fail?: (error: AuthError) => void}} Request
 * @typedef {Promise<WechatMiniprogram.RequestSuccessCallbackResult<any>>} Reply
 */

const ignore = () => {}
const dateOf = (text = '') => Date.parse(text) / 1000

class AuthError extends Error {
  /** @param {string} code @param {any} why @param {number} [status] */
  constructor (code, why, status, retryAfter = 0) {
    super(String(why).replace(/eyJ[\w-]*\.[\w.-]*/g, '…')) // no token, whoever quotes one
    this.name = 'AuthError'
    this.code = code
    this.status = status
    // Seconds to wait.
    this.retryAfter = retryAfter > 0 && retryAfter < Infinity ? Math.ceil(retryAfter) : undefined
    this.errMsg = this.message
  }
}

/** Null for what clients may read differently (`@`, `\`, `#`): it gets no token. */
function origin (url = '') {
  const found = /^(https?):\/\/([a-z\d.-]+)(?::(\d*))?(?:\/|\?[^@\\]*$|$)/i.exec(url)
  return found && (found[1] + '://' + found[2]).toLowerCase() + ':' + (+found[3] || (found[1][4] ? 443 : 80))
}

/** Their names come in any case. @param {any} reply @param {string} name */
function headerOf ({ header = {} }, name) {
  return String(header[Object.keys(header).filter(key => key.toLowerCase() === name)[0]])
}

/** What a token says, null if it is none of this app. Servers check whether it is true. @returns {any} */
function read (token = '', appid = '') {
  try {
    const bits = token.split('.')[1].replace(/./g, x => (BASE64URL.indexOf(x) | 64).toString(2).slice(1))
    const hex = bits.replace(/.{1,8}/g, x => x[7] ? '%' + (parseInt(x, 2) | 256).toString(16).slice(1) : '')
    const said = JSON.parse(decodeURIComponent(hex))
    return said.openid && said.iat < said.exp && (!appid || said.client_id === appid) ? said : null
  } catch (error) {
    return null
  }
}

/**
 * @param {{baseURL: string, appid?: string, hosts?: string[], wx?: any, renewBefore?: number, timeout?: number,
 *   clock?: {now: () => number, setTimeout: any}, random?: () => number}} options
 */
function createAuth (options) {
  const { hosts = [], renewBefore = 300, timeout = 10000, random = Math.random } = options
  const { now, setTimeout: later } = options.clock || { now: Date.now, setTimeout }
  const api = options.wx || wx
  const base = String(options.baseURL).replace(/\/+$/, '')
  const ours = hosts.map(host => host.includes('//') ? host : base.split(':')[0] + '://' + host).concat(base).map(origin)
  const account = { appId: '', envVersion: '' }
  try {
    Object.assign(account, api.getAccountInfoSync().miniProgram)
  } catch (error) {} // not in every wx
  const appid = options.appid || account.appId || undefined
  const key = `authsvc:${appid}:${account.envVersion}`

  let current = '' // the token
  let said = read() // what it says
  const time = () => now() / 1000 // of this phone, which may be wrong and may be set
  let offset = 0 // to the server's
  /** @type {Promise<string> | null} */
  let flight = null // the login under way, which all wait for
  let last = Promise.resolve() // before it has ended no other starts, also after logout()
  let epoch = 0 // of logouts
  let isUsed = false
  let doubt = false // the last token was refused, this one not yet accepted
  let failures = 0 // in a row
  let logins = [0] // times of wx.login
  let pause = { error: new AuthError('', ''), length: 0, until: 0 } // of wx.login
  try {
    const { token, exp, offset: from } = api.getStorageSync(key)
    const found = read(token, appid)
    if (found.exp === exp && Number.isFinite(from)) [current, said, offset] = [token, found, from]
  } catch (error) {} // rubbish, or none

  function keep (token = '') {
    current = token
    said = read(token, appid)
    try {
      if (token) api.setStorageSync(key, { token, exp: said.exp, offset })
      else api.removeStorageSync(key)
    } catch (error) {} // it is kept while the app lives
  }

  const timeLeft = () => said ? said.exp - time() - offset : 0

  /** @returns {Claims} or null */
  function claims () {
    const left = Math.max(0, Math.floor(timeLeft()))
    return said && Object.assign({}, said, { appid: said.client_id, expires_in: left })
  }

  /** Whether it calls back or promises. @returns {Promise<any>} */
  function step (name = '', /** @type {any} */ given = {}) {
    const ms = given.timeout || timeout
    return new Promise((success, fail) => {
      later(() => fail(Error('timeout')), ms)
      const promise = api[name](Object.assign({}, given, { timeout: ms, success, fail, complete: ignore }))
      if (promise && promise.then) promise.then(success, fail)
    }).catch(error => {
      const { message = 'fail', errMsg: why = message } = error || {}
      const code = name === 'request' ? 'offline' : 'wx_login_failed'
      throw new AuthError(/timed? ?out/i.test(why) ? 'timeout' : code, why)
    })
  }

  /** @param {any} reply */
  function problem (reply) {
    const after = headerOf(reply, 'retry-after')
    const wait = +after || dateOf(after) - (dateOf(headerOf(reply, 'date')) || time() + offset)
    const isOurs = /problem\+json/.test(headerOf(reply, 'content-type'))
    const { code, title = 'not the service', detail = title } = (isOurs && reply.data) || {}
    return new AuthError(typeof code === 'string' ? code : 'bad_answer', detail, reply.statusCode, Math.min(wait, 3600))
  }

  /** With a new code: the last may be used up. */
  function exchange () {
    logins.push(time())
    return step('login').then(({ code }) => {
      if (!code) throw new AuthError('no_code', 'no code')
      return step('request', { url: base + '/login', method: 'POST', data: { code, appid } })
    }).then(reply => {
      const { token } = reply.data || {}
      const found = reply.statusCode === 200 && read(token, appid)
      if (!found) throw problem(reply)
      const date = dateOf(headerOf(reply, 'date')) // a proxy may leave it out, or set its own
      offset = (Math.abs(date - found.iat) < 60 ? date : found.iat) - time()
      return token
    })
  }

  function hold (error = pause.error, length = 0) {
    const until = time() + length
    if (pause.until < until) pause = { error, length, until }
  }

  /** How long it still is. */
  function held () {
    const at = time()
    logins = logins.filter(then => then <= at && then > at - GIVE_UP)
    if (logins.length >= MOST_LOGINS) hold(new AuthError('given_up', 'many logins'), logins[0] + GIVE_UP - at)
    pause.until = Math.min(pause.until, at + pause.length) // the clock may have been set back
    return Math.max(0, pause.until - at)
  }

  function paused () {
    const { code = 'bad_answer', message, status } = pause.error
    return new AuthError(code, message, status, held())
  }

  function assertSame (before = epoch) {
    if (epoch !== before) throw new AuthError('logged_out', 'logout')
  }

  /** @returns {Promise<string>} */
  function attempt (before = epoch, tries = 1) {
    assertSame(before)
    const wait = held()
    if (wait > LONGEST_WAIT) throw paused()
    const slept = new Promise(resolve => wait ? later(resolve, wait * 1000) : resolve(0))
    return slept.then(() => assertSame(before)).then(() => exchange().then(token => {
      assertSame(before)
      failures = pause.until = 0
      keep(token)
      return token
    }, error => {
      const { code, status, retryAfter = 0 } = error
      const isRefused = /^code_/.test(code) // one more try
      const isLast = tries >= TRIES || (!isRefused && /^4(?!08|29)/.test(status))
      // Half by chance: phones that failed together come again apart.
      const backoff = Math.min(Math.pow(2, failures++), 30) * (1 + random()) / 2
      const length = Math.max(backoff, retryAfter)
      if (isLast || !isRefused) hold(error, /^user_/.test(code) ? Infinity : length) // until login() is called
      if (isLast) throw paused()
      return attempt(before, isRefused ? TRIES : tries + 1)
    }))
  }

  function logIn () {
    if (flight) return flight
    const before = epoch
    const mine = flight = last.then(() => attempt(before))
    const end = () => { if (flight === mine) flight = null }
    last = mine.then(end, end)
    return mine
  }

  /** A token with time left. */
  function usable () {
    isUsed = true
    const left = timeLeft()
    if (left <= 0) return logIn()
    const life = said.exp - said.iat
    // More than its life: the phone's clock was set back.
    const isDue = left <= Math.min(renewBefore, life / 2) || left > life + 60
    if (isDue) logIn().catch(ignore) // this one is good meanwhile
    return Promise.resolve(current)
  }

  /** @param {any} given @returns {Reply} */
  function send (given, token = '', since = epoch, isRepeated = false) {
    assertSame(since)
    const header = Object.assign({}, given.header)
    for (const name in header) if (/^authorization$/i.test(name)) delete header[name]
    header.Authorization = 'Bearer ' + token
    return step('request', Object.assign({}, given, { header })).then(reply => {
      const isCurrent = token === current
      if (reply.statusCode !== 401) {
        if (isCurrent) doubt = false
        return reply
      }
      assertSame(since)
      if (isRepeated || (isCurrent && doubt)) {
        doubt = false
        hold(new AuthError('given_up', 'a new token is refused', 401), GIVE_UP)
        throw paused()
      }
      // The first of many refused replaces the token, the others find the new one.
      if (isCurrent) {
        if (held() > LONGEST_WAIT) throw paused() // another host may take it
        doubt = true
        keep()
      }
      return usable().then(next => send(given, next, since, true))
    })
  }

  /** @param {Request} given @returns {Reply} */
  function request (given) {
    const { success = ignore, fail = ignore, complete = ignore, sessionKey } = given
    const url = String(given.url).replace(/^\/(?![/\\])/, base + '/')
    const all = Object.assign({}, given, { url })
    const [before, since] = [current, epoch]
    const result = ours.indexOf(origin(url) || '-') < 0 ? step('request', all) : usable().then(token => {
      if (!sessionKey || token !== before) return token // a login has just made the key
      return step('checkSession').then(() => token, () => {
        assertSame(since)
        return token === current ? logIn() : usable()
      })
    }).then(token => send(all, token, since))
    if (given.success || given.fail || given.complete) {
      result.then(success, fail)
      result.then(complete, complete)
    }
    return result
  }

  // It may live for days.
  if (api.onAppShow) api.onAppShow(() => isUsed && current && usable().catch(ignore))
  return {
    /** As wx.request. Our own hosts get the token, after a 401 once more a new one. */
    request,
    claims: /** @type {() => Claims | null} */ (claims),
    /** Resolves when there is a token with time left. */
    ready: () => usable().then(claims),
    login () {
      if (pause.length === Infinity) pause.until = 0
      return logIn().then(claims)
    },
    /** @returns {Promise<{is_login: boolean, [more: string]: any}>} */
    check () {
      const token = current
      const header = { Authorization: 'Bearer ' + token }
      return step('request', { url: base + '/checklogin', header }).then(reply => {
        const { is_login: isLogin } = reply.data || {}
        if (typeof isLogin !== 'boolean') throw problem(reply)
        if (!isLogin && token === current) keep()
        return reply.data
      })
    },
    /** Forgets it here. Whoever waits is told `logged_out`. */
    logout () {
      epoch++
      flight = null
      keep()
    }
  }
}

module.exports = { createAuth, AuthError }
