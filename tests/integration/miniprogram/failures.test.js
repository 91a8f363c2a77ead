// A login that fails: each way has an end, and none of them loops.
'use strict'

const test = require('node:test')
const assert = require('node:assert/strict')
const { APPID, Phone, control, exchanges, loggedIn, sandbox, server, DAY } = require('./world')

const LOGIN = ['login', 'POST /login 200']
const PAGE = { status: 502, headers: { 'Content-Type': 'text/html' }, body: '<html>Bad Gateway</html>' }
const problem = (status, code, headers = {}) => ({
  status, headers: { 'Content-Type': 'application/problem+json', ...headers }, body: { status, title: 'no', code }
})

/** A phone with a service of the test's own, which answers in this order, the last one again and again. */
async function against (t, answers, given = {}) {
  let next = 0
  const it = await server(t, () => answers[Math.min(next++, answers.length - 1)])
  return Object.assign(new Phone({ ...given, options: { baseURL: it.url } }), { requests: it.requests })
}

test('a restart of the service is waited for with fresh codes, and tokens outlive it', async () => {
  const phone = await loggedIn()
  const before = await exchanges()
  await control('restart')
  assert.equal((await phone.ok(phone.auth.request({ url: '/checklogin' }))).data.is_login, true)
  assert.deepEqual(phone.seen(), ['GET /checklogin 200'])
  assert.equal(await exchanges(), before)
  await control('stop')
  const login = phone.auth.login()
  await phone.idle()
  await control('start')
  await phone.ok(login)
  assert.deepEqual(phone.seen(), ['login', 'POST /login unreachable', ...LOGIN])
  assert.equal(new Set(phone.codes).size, 3)
  assert.equal(await exchanges(), before + 1)
})

test('a service that is down ends a login after three tries, and later ones after longer waits', async t => {
  const phone = new Phone()
  const before = await exchanges()
  await control('stop')
  t.after(() => control('start'))
  const DOWN = ['login', 'POST /login unreachable']
  const { seconds } = await phone.fails(phone.auth.ready(), { code: 'offline', retryAfter: 4, status: undefined })
  assert.equal(seconds, 1 + 2)
  assert.deepEqual(phone.seen(), [...DOWN, ...DOWN, ...DOWN])
  assert.equal((await phone.fails(phone.auth.ready(), { code: 'offline', retryAfter: 16 })).seconds, 4 + 8)
  assert.deepEqual(phone.seen(), [...DOWN, ...DOWN])
  assert.equal((await phone.fails(phone.auth.login(), { code: 'offline', retryAfter: 16 })).seconds, 0)
  assert.equal((await phone.fails(phone.auth.request({ url: '/checklogin' }), { code: 'offline' })).seconds, 0)
  assert.deepEqual(phone.seen(), [], 'it says so at once')
  assert.equal(await exchanges(), before)
  phone.clock.advance(16 * 1000)
  await control('start')
  await phone.ok(phone.auth.ready())
  assert.deepEqual(phone.seen(), LOGIN)
  assert.equal(new Set(phone.codes).size, phone.codes.length)
  assert.equal(await exchanges(), before + 1)
})

test('pages that ask every second of an hour for a login call wx.login seldom', async () => {
  const phone = new Phone()
  phone.isOnline = false
  for (let second = 0; second < 3600; second++) {
    phone.auth.ready().catch(() => {})
    phone.clock.advance(1000)
    for (let i = 0; i < 5; i++) await new Promise(resolve => setImmediate(resolve))
  }
  const { login } = phone.counted()
  assert.ok(login > 60 && login <= 130, String(login))
})

test('a phone that is offline says so, and logs in when it is not', async () => {
  const phone = new Phone()
  phone.isOnline = false
  await phone.fails(phone.auth.ready(), { code: 'wx_login_failed' })
  assert.deepEqual(phone.seen(), ['login', 'login', 'login'])
  phone.isOnline = true
  await phone.ok(phone.auth.ready())
  assert.deepEqual(phone.seen(), LOGIN)
  phone.isOnline = false
  await phone.fails(phone.auth.request({ url: '/checklogin' }), { code: 'offline' })
  await phone.fails(phone.auth.check(), { code: 'offline' })
  assert.deepEqual(phone.seen(), ['GET /checklogin offline', 'GET /checklogin offline'])
  assert.ok(phone.auth.claims(), 'nobody is logged out by it')
})

test('the backoff is half by chance', async () => {
  const phone = new Phone({ random: () => 0 })
  phone.isOnline = false
  assert.equal((await phone.fails(phone.auth.ready(), {})).seconds, 0.5 + 1)
})

test('wx.login without a code, failing, throwing or never calling back has an end', async () => {
  for (const [login, code, least] of [
    [({ success }) => success({ errMsg: 'login:ok' }), 'no_code', 3],
    [({ success }) => success({ code: '' }), 'no_code', 3],
    [({ fail }) => fail({ errMsg: 'login:fail' }), 'wx_login_failed', 3],
    [({ fail }) => fail(), 'wx_login_failed', 3],
    [() => { throw new TypeError('no such thing') }, 'wx_login_failed', 3],
    [() => {}, 'timeout', 33]
  ]) {
    let calls = 0
    const phone = new Phone({ overrides: { login: given => { calls += 1; return login(given) } } })
    const { seconds } = await phone.fails(phone.auth.ready(), { code })
    assert.deepEqual([calls, seconds], [3, least], code)
    assert.deepEqual(phone.sent, [])
  }
})

test('a POST /login that is never answered times out, and its code is not sent again', async () => {
  const phone = new Phone()
  phone.wx.request = given => { phone.sent.push(given) }
  const { seconds } = await phone.fails(phone.auth.ready(), { code: 'timeout' })
  assert.equal(seconds, 33)
  assert.equal(phone.sent.length, 3)
  assert.equal(new Set(phone.sent.map(one => one.data.code)).size, 3)
  phone.sent[0].success({ statusCode: 200, header: {}, data: { token: 'late' } })
  assert.equal(phone.auth.claims(), null)
})

test('the token of a login that timed out is not kept when it comes after all', async () => {
  const phone = new Phone()
  const late = []
  const request = phone.wx.request
  phone.wx.request = given => request({ ...given, success: reply => late.push(() => given.success(reply)) })
  await phone.fails(phone.auth.ready(), { code: 'timeout' })
  for (const tell of late) tell()
  assert.deepEqual([phone.auth.claims(), phone.storage], [null, {}])
})

test('a used code is followed by one fresh code, and then by an error', async () => {
  for (const [fault, code] of [['code_used', 'code_used'], ['invalid_code', 'code_invalid']]) {
    const before = await exchanges()
    const once = new Phone()
    await sandbox('fault', { name: fault })
    const [, , seconds] = await once.until(once.auth.ready())
    assert.equal(seconds, 0)
    assert.deepEqual(once.seen(), ['login', 'POST /login 401', ...LOGIN])
    assert.equal(new Set(once.codes).size, 2)
    const always = new Phone()
    always.codeOrder = { fault }
    await always.fails(always.auth.ready(), { code, status: 401 })
    assert.deepEqual(always.seen(), ['login', 'POST /login 401', 'login', 'POST /login 401'])
    assert.equal(await exchanges(), before + 4)
  }
})

test('a user whom WeChat blocks is told at once, and only login() tries again', async () => {
  const phone = new Phone()
  const before = await exchanges()
  phone.codeOrder = { fault: 'code_blocked' }
  const { error } = await phone.fails(phone.auth.ready(), { code: 'user_blocked', status: 403, retryAfter: undefined })
  assert.ok(error.message)
  assert.deepEqual(phone.seen(), ['login', 'POST /login 403'])
  phone.clock.advance(7 * DAY * 1000)
  await phone.fails(phone.auth.ready(), { code: 'user_blocked', status: 403 })
  await phone.fails(phone.auth.request({ url: '/checklogin' }), { code: 'user_blocked' })
  phone.show()
  await phone.idle()
  assert.deepEqual(phone.seen(), [])
  assert.equal(await exchanges(), before + 1)
  phone.codeOrder = {}
  await phone.ok(phone.auth.login())
  assert.deepEqual(phone.seen(), LOGIN)
})

test('a banned user keeps the token that is good, and is not logged in again', async () => {
  const phone = await loggedIn()
  await control('ban', { openid: phone.auth.claims().openid })
  await phone.fails(phone.auth.login(), { code: 'user_banned', status: 403 })
  assert.deepEqual(phone.seen(), ['login', 'POST /login 403'])
  phone.clock.advance(7000 * 1000)
  assert.equal((await phone.ok(phone.auth.request({ url: '/checklogin' }))).data.is_login, true)
  await phone.idle()
  assert.deepEqual(phone.seen(), ['GET /checklogin 200'])
  await control('unban', { openid: phone.auth.claims().openid })
  await phone.ok(phone.auth.login())
  assert.deepEqual(phone.seen(), LOGIN)
})

test('a rate limit is waited out, and nobody calls wx.login before', async () => {
  const phone = new Phone()
  const before = await exchanges()
  phone.codeOrder = { fault: 'rate_limited' }
  const { seconds } = await phone.fails(phone.auth.ready(), { code: 'rate_limited', status: 429, retryAfter: 60 })
  assert.equal(seconds, 0)
  assert.deepEqual(phone.seen(), ['login', 'POST /login 429'])
  phone.clock.advance(40 * 1000)
  for (const ask of [phone.auth.login, phone.auth.ready, () => phone.auth.request({ url: '/checklogin' })]) {
    await phone.fails(ask(), { code: 'rate_limited', status: 429, retryAfter: 20 })
  }
  assert.deepEqual(phone.seen(), [])
  phone.codeOrder = {}
  phone.clock.advance(15 * 1000)
  const [claims, , waited] = await phone.until(phone.auth.ready())
  assert.equal(claims.appid, APPID)
  assert.equal(waited, 5, 'what is left is waited for, if it is not long')
  assert.deepEqual(phone.seen(), LOGIN)
  assert.equal(await exchanges(), before + 2)
})

test('a short Retry-After is waited for within the login', async () => {
  const phone = new Phone()
  phone.codeOrder = { fault: 'system_busy' }
  const ready = phone.auth.ready()
  await phone.idle()
  phone.codeOrder = {}
  const [claims, , seconds] = await phone.until(ready)
  assert.ok(claims)
  assert.equal(seconds, 5)
  assert.deepEqual(phone.seen(), ['login', 'POST /login 503', ...LOGIN])
})

test('429 and 408 are waited for like 503', async t => {
  const { stored } = await loggedIn()
  for (const [answer, waited] of [
    [problem(429, 'rate_limited', { 'Retry-After': '2' }), 2], [problem(408, 'request_timeout'), 1]
  ]) {
    const phone = await against(t, [answer, { body: { token: stored.token } }])
    const [claims, , seconds] = await phone.until(phone.auth.ready())
    assert.equal(claims.appid, APPID)
    assert.equal(seconds, waited)
    assert.deepEqual(phone.seen(), ['login', `POST /login ${answer.status}`, ...LOGIN])
  }
})

test('Retry-After may be a date, is capped, and is never less than the backoff', async t => {
  const at = Date.now() - DAY * 1000
  const date = seconds => new Date(at + seconds * 1000).toUTCString()
  for (const [headers, retryAfter] of [
    [{ 'Retry-After': date(90), Date: date(0) }, 90],
    [{ 'Retry-After': date(90), Date: date(0), 'Content-Type': 'application/problem+json; charset=utf-8' }, 90],
    [{ 'Retry-After': '999999999' }, 3600],
    [{ 'Retry-After': '3600' }, 3600]
  ]) {
    const page = { ...PAGE, status: 503, headers: { ...headers, 'Content-Type': 'text/html' } } // of a proxy
    for (const [answer, code] of [[problem(503, 'wechat_quota', headers), 'wechat_quota'], [page, 'bad_answer']]) {
      const phone = await against(t, [answer])
      await phone.fails(phone.auth.ready(), { code, status: 503, retryAfter })
      await phone.fails(phone.auth.ready(), { code, status: 503, retryAfter })
      assert.equal(phone.requests.length, 1)
    }
  }
  for (const said of ['0', '-5', 'soon', date(-5)]) {
    const phone = await against(t, [problem(503, 'wechat_busy', { 'Retry-After': said, Date: date(0) })])
    assert.equal((await phone.fails(phone.auth.ready(), { code: 'wechat_busy' })).seconds, 3, said)
    assert.equal(phone.requests.length, 3)
  }
})

test('5xx without Retry-After is tried again, and other refusals are not', async t => {
  const timeout = await against(t, [problem(504, 'wechat_timeout')])
  await timeout.fails(timeout.auth.ready(), { code: 'wechat_timeout', status: 504 })
  assert.equal(timeout.requests.length, 3)
  for (const [status, code] of [[400, 'bad_request'], [404, 'not_found'], [415, 'unsupported_media_type']]) {
    const phone = await against(t, [problem(status, code)])
    await phone.fails(phone.auth.ready(), { code, status })
    assert.equal(phone.requests.length, 1)
  }
})

test('the mock code of a test account is told as what it is', async () => {
  const phone = new Phone({ overrides: { login: ({ success }) => success({ code: 'the code is a mock one' }) } })
  const { error } = await phone.fails(phone.auth.ready(), { code: 'bad_request', status: 400 })
  assert.match(error.message, /code/)
  assert.deepEqual(phone.seen(), ['POST /login 400'])
})

test('what is not of the service is bad_answer, and nothing of it is kept', async t => {
  for (const [answer, tries] of [
    [PAGE, 3], [{ body: '<html>log in to this café</html>' }, 3], [{ body: {} }, 3], [{ body: 'null' }, 3],
    [{ body: '' }, 3],
    [{ body: { token: null } }, 3], [{ body: { token: 'undefined' } }, 3], [{ body: { token: 'a.b.c' } }, 3],
    [{ status: 403, body: { code: 'user_blocked' } }, 1], [{ ...problem(400, 'x'), body: 'null' }, 1]
  ]) {
    const phone = await against(t, [answer])
    const { error } = await phone.fails(phone.auth.ready(), { code: 'bad_answer', status: answer.status || 200 })
    assert.match(error.message, /not the service|no/)
    const found = [phone.requests.length, phone.auth.claims(), phone.storage]
    assert.deepEqual(found, [tries, null, {}], JSON.stringify(answer))
  }
})

test('an answer that is none, and a code that is no text, are a bad_answer too', async t => {
  for (const reply of [undefined, null, {}, { statusCode: 200, data: {}, header: null }]) {
    const phone = new Phone({ overrides: { request: given => given.success(reply) } })
    await phone.fails(phone.auth.ready(), { code: 'bad_answer' })
    assert.equal(phone.counted().login, 3)
  }
  const mute = new Phone({ overrides: { login: given => given.success() } })
  await mute.fails(mute.auth.ready(), { code: 'bad_answer' })
  for (const code of [null, 7, ['code_used'], { toString: 1, valueOf: 1 }]) {
    const phone = await against(t, [{ ...problem(400, ''), body: { code } }])
    await phone.fails(phone.auth.ready(), { code: 'bad_answer', status: 400 })
    assert.equal(phone.requests.length, 1)
    await phone.fails(phone.auth.check(), { code: 'bad_answer', status: 400 })
  }
})

test('a Retry-After without end is an hour, and one that is over is none, whoever is told of it', async t => {
  const past = new Date(Date.now() - DAY * 1000).toUTCString()
  for (const [said, retryAfter] of [['1e400', 3600], ['Infinity', 3600], ['86400', 3600], ['1.5', 2], ['-1', undefined],
    [past, undefined], ['soon', undefined]]) {
    const phone = await against(t, [problem(503, 'overloaded', { 'Retry-After': said })])
    await phone.fails(phone.auth.check(), { code: 'overloaded', status: 503, retryAfter })
  }
})

test('the token of another app, or beside an error, is not taken', async t => {
  const real = await loggedIn()
  const { token } = real.stored
  const other = await against(t, [{ body: { token } }], { overrides: {
    getAccountInfoSync: () => ({ miniProgram: { appId: 'wx-other', envVersion: 'release' } })
  } })
  await other.fails(other.auth.ready(), { code: 'bad_answer' })
  const beside = await against(t, [{ status: 500, body: { token } }])
  await beside.fails(beside.auth.ready(), { code: 'bad_answer', status: 500 })
  assert.deepEqual([other.auth.claims(), beside.auth.claims()], [null, null])
})

test('login() in a loop ends in given_up', async t => {
  const real = await loggedIn()
  const phone = await against(t, [{ body: { token: real.stored.token } }])
  let failed = 0
  for (let i = 0; i < 100; i++) await phone.ok(phone.auth.login().catch(() => { failed += 1 }))
  assert.equal(phone.requests.length, 20)
  assert.equal(failed, 80)
  await phone.fails(phone.auth.login(), { code: 'given_up', retryAfter: 300 })
  await phone.ok(phone.auth.ready())
  phone.clock.advance(301 * 1000)
  await phone.ok(phone.auth.login())
})

test('a pause ends in time although the clock is set back meanwhile', async () => {
  const phone = new Phone()
  phone.codeOrder = { fault: 'rate_limited' }
  await phone.fails(phone.auth.ready(), { retryAfter: 60 })
  phone.clock.set(-DAY)
  await phone.fails(phone.auth.ready(), { retryAfter: 60 })
  phone.clock.advance(60 * 1000)
  phone.codeOrder = {}
  await phone.ok(phone.auth.ready())
})

test('no token gets into a message, whoever quotes it', async () => {
  const phone = await loggedIn()
  const { token } = phone.stored
  phone.wx.request = given => given.fail({ errMsg: `request:fail bad header Bearer ${token}` })
  const { error } = await phone.fails(phone.auth.request({ url: '/checklogin' }), { code: 'offline' })
  for (const text of [error.message, error.errMsg, error.stack, JSON.stringify(error), String(error)]) {
    assert.ok(!text.includes(token) && !text.includes(token.split('.')[1]))
  }
})
