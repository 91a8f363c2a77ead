// auth.request: which hosts get the token, what a 401 does, callbacks and promises.
'use strict'

const test = require('node:test')
const assert = require('node:assert/strict')
const { AuthError, Phone, backEnd, control, exchanges, loggedIn, sandbox, server } = require('./world')

const LOGIN = ['login', 'POST /login 200']

test('a 401 in the middle of ten parallel requests is one login, and each is repeated once', async t => {
  const api = await backEnd(t)
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  const old = `Bearer ${phone.stored.token}`
  api.refuses = authorization => authorization === old
  const before = await exchanges()
  const requests = Array.from({ length: 10 }, (_, i) => phone.auth.request({ url: `${api.url}/${i}` }))
  const all = await phone.ok(Promise.all(requests))
  assert.deepEqual(all.map(reply => reply.statusCode), Array(10).fill(200))
  const counted = phone.counted()
  assert.deepEqual([counted.login, counted['POST /login 200']], [1, 1])
  for (let i = 0; i < 10; i++) assert.deepEqual([counted[`GET /${i} 401`], counted[`GET /${i} 200`]], [1, 1])
  assert.equal(api.requests.length, 20)
  assert.equal(await exchanges(), before + 1)
})

test('a late 401 of the old token is repeated with the new one, without a login', async t => {
  const api = await backEnd(t)
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  const old = `Bearer ${phone.stored.token}`
  api.refuses = authorization => authorization === old
  const request = phone.wx.request
  let late
  phone.wx.request = given => {
    phone.wx.request = request
    request({ ...given, success: reply => { late = () => given.success(reply) } })
  }
  const slow = phone.auth.request({ url: `${api.url}/slow` })
  await phone.idle()
  await phone.ok(phone.auth.request({ url: `${api.url}/fast` }))
  late()
  assert.equal((await phone.ok(slow)).statusCode, 200)
  assert.deepEqual(phone.seen(), ['GET /slow 401', 'GET /fast 401', ...LOGIN, 'GET /fast 200', 'GET /slow 200'])
})

test('a second 401 in a row ends, and nobody calls wx.login for five minutes', async t => {
  const api = await backEnd(t)
  api.refuses = () => true
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  const before = await exchanges()
  const request = () => phone.auth.request({ url: `${api.url}/me` })
  await phone.fails(request(), { code: 'given_up', status: 401, retryAfter: 300 })
  assert.deepEqual(phone.seen(), ['GET /me 401', ...LOGIN, 'GET /me 401'])
  phone.clock.advance(100 * 1000)
  await phone.fails(request(), { code: 'given_up', status: 401, retryAfter: 200 })
  await phone.fails(phone.auth.login(), { code: 'given_up' })
  assert.deepEqual(phone.seen(), ['GET /me 401'])
  // The token is good elsewhere.
  await phone.ok(phone.auth.ready())
  assert.equal((await phone.ok(phone.auth.request({ url: '/checklogin' }))).data.is_login, true)
  assert.deepEqual(phone.seen(), ['GET /checklogin 200'])
  phone.clock.advance(200 * 1000)
  await phone.fails(request(), { code: 'given_up' })
  assert.deepEqual(phone.seen(), ['GET /me 401', ...LOGIN, 'GET /me 401'])
  assert.equal(await exchanges(), before + 2)
  phone.clock.advance(300 * 1000)
  api.refuses = () => false
  assert.equal((await phone.ok(request())).statusCode, 200)
})

test('ten parallel requests that are refused twice are one login', async t => {
  const api = await backEnd(t)
  api.refuses = () => true
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  const request = () => phone.auth.request({ url: `${api.url}/me` }).catch(error => error.code)
  assert.deepEqual(await phone.ok(Promise.all(Array.from({ length: 10 }, request))), Array(10).fill('given_up'))
  const counted = phone.counted()
  assert.deepEqual([counted.login, counted['POST /login 200'], counted['GET /me 401']], [1, 1, 20])
})

test('a new request with the token of a login after a 401 that is refused is the second in a row', async t => {
  const api = await backEnd(t)
  api.refuses = () => true
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  const request = phone.wx.request
  let held
  phone.wx.request = given => { // the repetition hangs
    if (given.url.endsWith('/me') && phone.events.includes('POST /login 200')) held = given
    else request(given)
  }
  phone.auth.request({ url: `${api.url}/me` }).catch(() => {})
  await phone.idle()
  assert.ok(held)
  await phone.fails(phone.auth.request({ url: `${api.url}/you` }), { code: 'given_up' })
  assert.deepEqual(phone.seen(), ['GET /me 401', ...LOGIN, 'GET /you 401'])
})

test('a 401 when the login fails is that failure', async t => {
  const api = await backEnd(t)
  api.refuses = () => true
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  phone.codeOrder = { fault: 'code_blocked' }
  await phone.fails(phone.auth.request({ url: `${api.url}/me` }), { code: 'user_blocked', status: 403 })
  assert.deepEqual(phone.seen(), ['GET /me 401', 'login', 'POST /login 403'])
})

test('a revoked key costs one login while the app is open', async t => {
  const api = await backEnd(t)
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  const other = phone.relaunch()
  await control('revoke')
  const before = await exchanges()
  const replies = await phone.ok(Promise.all([1, 2, 3].map(i => phone.auth.request({ url: `${api.url}/${i}` }))))
  assert.deepEqual(replies.map(reply => reply.statusCode), [200, 200, 200])
  const counted = phone.counted()
  assert.deepEqual([counted.login, counted['POST /login 200']], [1, 1])
  assert.equal(await exchanges(), before + 1)
  assert.deepEqual(await other.ok(other.auth.check()), { is_login: false, reason: 'revoked' })
  await other.ok(other.auth.ready())
  assert.deepEqual(other.seen(), ['GET /checklogin 200', ...LOGIN])
})

test('a 401 that comes after a logout starts no login', async t => {
  const api = await backEnd(t)
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  api.refuses = () => { phone.auth.logout(); return true }
  await phone.fails(phone.auth.request({ url: `${api.url}/me` }), { code: 'logged_out' })
  assert.deepEqual(phone.seen(), ['GET /me 401'])
})

test('a logout before a request is sent ends it: the token is not sent, and nobody is logged in for it', async () => {
  const phone = await loggedIn()
  const request = phone.auth.request({ url: '/checklogin' })
  phone.auth.logout()
  await phone.fails(request, { code: 'logged_out' })
  for (const gone of [false, true]) {
    await phone.ok(phone.auth.ready())
    phone.seen()
    phone.wx.checkSession = given => {
      phone.auth.logout()
      given[gone ? 'fail' : 'success']({})
    }
    await phone.fails(phone.auth.request({ url: '/checklogin', sessionKey: true }), { code: 'logged_out' })
    assert.deepEqual([phone.seen(), phone.auth.claims(), phone.storage], [[], null, {}])
  }
})

test('every status but 401 is a result', async t => {
  const statuses = [200, 204, 403, 404, 409, 429, 500, 503]
  const api = await server(t, request => ({ status: Number(request.url.slice(1)), headers: { 'Retry-After': '9' } }))
  const phone = await loggedIn({ options: { hosts: [api.host] } })
  for (const status of statuses) {
    const reply = await phone.ok(phone.auth.request({ url: `${api.url}/${status}`, method: 'POST', data: { a: 1 } }))
    assert.equal(reply.statusCode, status)
  }
  assert.deepEqual(phone.seen(), statuses.map(status => `POST /${status} ${status}`))
  assert.deepEqual(JSON.parse(api.requests[0].body), { a: 1 })
})

test('only our own hosts get the token, in the header and nowhere else', async () => {
  const storage = {}
  await loggedIn({ storage })
  for (const [baseURL, own, foreign] of [
    ['https://login.example.com/auth/', [
      '/x', '/x?to=https://evil.example', 'https://login.example.com', 'https://login.example.com/',
      'HTTPS://LOGIN.EXAMPLE.COM/x',
      'https://login.example.com:443/x', 'https://login.example.com?x=1', 'https://api.example.com/x',
      'https://b.example:8443/x',
      'https://api.example.com/a@b', 'https://c.example/x'
    ], [
      'http://login.example.com/x', 'http://login.example.com:443/x', 'https://login.example.com:8443/x',
      'https://b.example/x',
      'https://login.example.com.evil.example/', 'https://login.example.com@evil.example/',
      'https://evil.example/login.example.com',
      'https://login.example.com:443@evil.example/', 'https://login.example.com\\@evil.example/',
      'https://evil.example#login.example.com',
      'https://evil.example\\.login.example.com/', 'https://login.example.com#@evil.example/',
      'https://login.example.com?@evil.example/',
      'https://user:login.example.com@evil.example/', '//evil.example/', '/\\evil.example/', '\\\\evil.example/',
      'https:evil.example',
      'https:///login.example.com/', 'https:/login.example.com/', ' https://login.example.com/',
      'https://login.example.com\t.evil.example/',
      'https://login.example.com%2eevil.example/', 'https://login.example.com:44３/', 'https://ｌogin.example.com/',
      'x', '', undefined,
      'wss://login.example.com/', 'https://login.example.com./', 'https://xlogin.example.com/',
      'https://example.com/', 'ftp://api.example.com/', 'http://c.example/', 'https://https/'
    ]],
    ['http://127.0.0.1:3000', ['/x', 'http://127.0.0.1:3000/x', 'http://api.example.com/x', 'http://b.example:8443/',
      'https://c.example/x'], [
      'http://c.example/', 'https://127.0.0.1:3000/', 'http://127.0.0.1/', 'http://127.0.0.1:30000/',
      'http://127.0.0.1:3000.evil.example/', 'http://127.0.0.10:3000/'
    ]]
  ]) {
    const sent = []
    const phone = new Phone({ storage, options: { baseURL, hosts: ['api.example.com', 'b.example:8443', 'https://c.example/'] }, overrides: {
      request: given => { sent.push(given); given.success({ statusCode: 200, header: {}, data: {} }) }
    } })
    const { token } = phone.stored
    for (const [urls, gets] of [[own, true], [foreign, false]]) {
      for (const url of urls) {
        await phone.ok(phone.auth.request({ url, header: { 'X-Mine': '1' } }))
        const { header, url: asked } = sent.pop()
        assert.equal(header.Authorization, gets ? `Bearer ${token}` : undefined, `${baseURL} ${url} as ${asked}`)
        assert.equal(header['X-Mine'], '1')
        assert.ok(!asked.includes(token))
        if (String(url).startsWith('/x')) assert.equal(asked, baseURL.replace(/\/$/, '') + url)
      }
    }
    assert.deepEqual(phone.seen(), [])
  }
})

test('a request to another host neither waits for a login nor starts one, whatever it answers', async t => {
  const other = await server(t, () => ({ status: 401 }))
  const phone = new Phone()
  assert.equal((await phone.ok(phone.auth.request({ url: `${other.url}/x` }))).statusCode, 401)
  assert.deepEqual(phone.seen(), ['GET /x 401'])
  assert.equal(other.requests[0].headers.authorization, undefined)
})

test('what was given is not changed, and an Authorization of its own in any case is replaced', async () => {
  const phone = await loggedIn()
  const header = { authorization: 'Basic x', AUTHORIZATION: 'y', 'x-a': 'b' }
  const given = { url: '/checklogin', header, timeout: 2500 }
  const before = JSON.stringify(given)
  assert.equal((await phone.ok(phone.auth.request(given))).data.is_login, true)
  assert.equal(JSON.stringify(given), before)
  const sent = phone.sent.at(-1)
  assert.deepEqual(sent.header, { 'x-a': 'b', Authorization: `Bearer ${phone.stored.token}` })
  assert.equal(sent.timeout, 2500)
})

test('callbacks are called as by wx.request, complete once, and leave no rejection unhandled', async t => {
  const unhandled = []
  const note = error => unhandled.push(error)
  process.on('unhandledRejection', note)
  t.after(() => process.off('unhandledRejection', note))
  const api = await server(t, () => ({ status: 401 }))
  const phone = new Phone({ options: { hosts: [api.host] } })
  const told = []
  const callbacks = {
    success: reply => told.push(['success', reply.statusCode]),
    fail: error => told.push(['fail', error.code]),
    complete: result => told.push(['complete', result.statusCode || result.code])
  }
  const toldBy = async url => {
    await phone.until(phone.auth.request({ url, ...callbacks }).catch(() => {}))
    await phone.idle()
    return told.splice(0)
  }
  assert.deepEqual(await toldBy('/checklogin'), [['success', 200], ['complete', 200]])
  assert.deepEqual(await toldBy(`${api.url}/x`), [['fail', 'given_up'], ['complete', 'given_up']])
  phone.isOnline = false
  const { success, fail, complete } = callbacks
  for (const some of [{ success }, { fail }, { complete }, callbacks]) {
    phone.auth.request({ url: '/checklogin', ...some })
    await phone.idle()
  }
  assert.deepEqual(told, [['fail', 'offline'], ['complete', 'offline'], ['fail', 'offline'], ['complete', 'offline']])
  assert.deepEqual(unhandled, [])
  const kept = phone.auth.request({ url: '/checklogin', ...callbacks })
  await assert.rejects(kept, AuthError)
})

test('complete is called although success throws, and fail is not', async t => {
  const thrown = []
  const runners = process.listeners('unhandledRejection') // who would fail the test for it
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', error => thrown.push(error.message))
  t.after(() => {
    process.removeAllListeners('unhandledRejection')
    for (const listener of runners) process.on('unhandledRejection', listener)
  })
  const phone = await loggedIn()
  const told = []
  phone.auth.request({ url: '/checklogin', success: () => { throw new Error('of the page') },
    fail: () => told.push('fail'), complete: () => told.push('complete') })
  await phone.idle()
  assert.deepEqual(told, ['complete'])
  assert.deepEqual(thrown, ['of the page'], 'and the page hears of it')
})

test('wx.checkSession is asked only before what needs the session_key, and a login follows if it fails', async () => {
  const phone = new Phone()
  const ask = () => phone.auth.request({ url: '/checklogin', sessionKey: true })
  const request = () => phone.ok(ask())
  await request()
  assert.deepEqual(phone.seen(), [...LOGIN, 'GET /checklogin 200'], 'the key is new')
  await request()
  assert.deepEqual(phone.seen(), ['checkSession', 'GET /checklogin 200'])
  phone.sessionKeyIsGone = true
  await request()
  assert.deepEqual(phone.seen(), ['checkSession', ...LOGIN, 'GET /checklogin 200'])
  await phone.ok(Promise.all(Array.from({ length: 5 }, ask)))
  assert.deepEqual(phone.counted(), { checkSession: 5, login: 1, 'POST /login 200': 1, 'GET /checklogin 200': 5 })
  await phone.ok(phone.auth.request({ url: '/checklogin' }))
  assert.deepEqual(phone.seen(), ['GET /checklogin 200'])
  const checkSession = phone.wx.checkSession
  let late
  phone.wx.checkSession = given => {
    phone.wx.checkSession = checkSession
    checkSession({ ...given, fail: error => { late = () => given.fail(error) } })
  }
  const slow = ask()
  await phone.idle()
  await request()
  late()
  await phone.ok(slow)
  assert.deepEqual(phone.counted(), { checkSession: 2, login: 1, 'POST /login 200': 1, 'GET /checklogin 200': 2 })
})

test('a phone number is had with the code of the button', async () => {
  const phone = await loggedIn()
  const { code } = await sandbox('phone_code', { user: phone.user, phone: '13800138000' })
  const reply = await phone.ok(phone.auth.request({ url: '/session/phone', method: 'POST', data: { code } }))
  assert.deepEqual([reply.statusCode, reply.data.purePhoneNumber], [200, '13800138000'])
  assert.deepEqual(phone.seen(), ['POST /session/phone 200'])
})

test('Taro and uni work as wx does: with promises alone, with callbacks, or with both', async () => {
  const unhandled = []
  process.on('unhandledRejection', error => unhandled.push(error))
  const kinds = {
    // Taro calls back and returns a promise, which rejects too.
    taro: (phone, name) => given => new Promise((resolve, reject) => phone.wx[name]({
      ...given,
      success: result => { given.success(result); resolve(result) },
      fail: error => { given.fail(error); reject(error) }
    })),
    // uni calls back and returns a task.
    uni: (phone, name) => given => { phone.wx[name](given); return { abort () {} } },
    promised: (phone, name) => given => new Promise((resolve, reject) => {
      phone.wx[name]({ ...given, success: resolve, fail: reject, complete: undefined })
    })
  }
  for (const [kind, wrap] of Object.entries(kinds)) {
    const phone = new Phone()
    const like = { getStorageSync: phone.wx.getStorageSync, setStorageSync: phone.wx.setStorageSync }
    for (const name of ['login', 'request', 'checkSession']) like[name] = wrap(phone, name)
    like.removeStorageSync = phone.wx.removeStorageSync
    const { auth } = new Phone({ events: phone.events, options: { wx: like, clock: phone.clock } })
    await phone.ok(auth.ready())
    const reply = await phone.ok(auth.request({ url: '/checklogin', sessionKey: true }))
    assert.equal(reply.data.is_login, true)
    assert.deepEqual(phone.seen(), [...LOGIN, 'checkSession', 'GET /checklogin 200'], kind)
    assert.deepEqual(Object.keys(phone.storage).length, 1)
    phone.isOnline = false
    await phone.fails(auth.login(), { code: 'wx_login_failed' })
    await phone.fails(auth.request({ url: '/checklogin' }), { code: 'offline' })
  }
  await new Promise(resolve => setImmediate(resolve))
  assert.deepEqual(unhandled, [])
})
