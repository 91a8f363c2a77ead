// Getting a token, and keeping it: launches, single flight, renewal, clocks, storage.
'use strict'

const test = require('node:test')
const assert = require('node:assert/strict')
const { APPID, DAY, Phone, control, exchanges, loggedIn, server, SERVICE } = require('./world')

const LOGIN = ['login', 'POST /login 200']
const HOUR = 3600

test('a first launch is one wx.login and one POST /login', async () => {
  const before = await exchanges()
  const phone = new Phone()
  assert.deepEqual(phone.events, [])
  assert.equal(phone.auth.claims(), null)
  const claims = await phone.ok(phone.auth.ready())
  assert.deepEqual(phone.seen(), LOGIN)
  assert.equal(await exchanges(), before + 1)
  assert.deepEqual(phone.sent[0].data, { code: phone.codes[0], appid: APPID })
  assert.equal(claims.appid, APPID)
  assert.equal(typeof claims.openid, 'string')
  assert.ok(Math.abs(claims.expires_in - 7200) <= 2, String(claims.expires_in))
  assert.deepEqual(phone.auth.claims(), claims)
  assert.deepEqual(Object.keys(phone.stored).sort(), ['exp', 'offset', 'token'])
  assert.deepEqual(Object.keys(phone.storage), [`authsvc:${APPID}:release`])
})

test('a second launch asks nobody', async () => {
  const first = await loggedIn()
  const before = await exchanges()
  const second = first.relaunch()
  const claims = await second.ok(second.auth.ready())
  assert.equal(claims.openid, first.auth.claims().openid)
  assert.deepEqual(second.seen(), [])
  const reply = await second.ok(second.auth.request({ url: '/checklogin' }))
  assert.equal(reply.data.is_login, true)
  assert.deepEqual(second.seen(), ['GET /checklogin 200'])
  assert.equal(await exchanges(), before)
})

test('ten pages at once on a cold start log in once', async () => {
  const before = await exchanges()
  const phone = new Phone()
  const pages = Array.from({ length: 10 }, (_, i) => [
    () => phone.auth.ready(), () => phone.auth.request({ url: '/checklogin' }), () => phone.auth.login()
  ][i % 3]())
  await phone.ok(Promise.all(pages))
  assert.deepEqual(phone.counted(), { login: 1, 'POST /login 200': 1, 'GET /checklogin 200': 3 })
  assert.equal(await exchanges(), before + 1)
})

test('a token that ends while the app is open is replaced before the next request', async () => {
  const phone = await loggedIn()
  const before = await exchanges()
  phone.clock.advance(7201 * 1000)
  assert.equal(phone.auth.claims().expires_in, 0)
  await phone.ok(Promise.all([phone.auth.request({ url: '/checklogin' }), phone.auth.ready()]))
  assert.deepEqual(phone.seen(), [...LOGIN, 'GET /checklogin 200'])
  assert.equal(await exchanges(), before + 1)
})

test('near its end a token is renewed in the background, and serves on meanwhile', async () => {
  const phone = await loggedIn()
  const old = phone.stored.token
  phone.clock.advance(6950 * 1000)
  const request = phone.auth.request({ url: '/checklogin' })
  assert.equal((await phone.ok(request)).data.is_login, true)
  await phone.idle()
  assert.deepEqual(phone.counted(), { login: 1, 'POST /login 200': 1, 'GET /checklogin 200': 1 })
  const sent = phone.sent.find(one => one.url.endsWith('/checklogin'))
  assert.equal(sent.header.Authorization, 'Bearer ' + old)
  assert.notEqual(phone.stored.token, old)
})

test('a renewal that fails harms no request whose token is still good, and is not tried at once again', async t => {
  const phone = await loggedIn()
  phone.clock.advance(6950 * 1000)
  await control('stop')
  t.after(() => control('start'))
  await phone.ok(phone.auth.ready())
  const [, error] = await phone.until(phone.auth.request({ url: '/checklogin' }))
  assert.equal(error.code, 'offline') // of the request itself
  await phone.ok(phone.auth.ready())
  assert.equal(phone.events.filter(event => event === 'login').length, 1)
  phone.clock.advance(8000)
  await phone.idle()
  await phone.ok(phone.auth.ready())
  assert.ok(phone.events.filter(event => event === 'login').length <= 3)
  assert.equal(phone.auth.claims().expires_in > 0, true)
})

test('coming back to the foreground renews a token near its end or over, and does nothing else', async () => {
  const phone = await loggedIn()
  phone.show()
  await phone.idle()
  assert.deepEqual(phone.seen(), [])
  phone.clock.advance(6950 * 1000)
  phone.show()
  await phone.idle()
  assert.deepEqual(phone.seen(), LOGIN)
  const unused = phone.relaunch({ wrong: DAY })
  unused.show()
  await unused.idle()
  assert.deepEqual(unused.seen(), [], 'nobody has asked for a login yet')
  phone.clock.advance(2 * DAY * 1000)
  phone.show()
  await phone.idle()
  assert.deepEqual(phone.seen(), LOGIN)
  phone.auth.logout()
  phone.show()
  await phone.idle()
  assert.deepEqual(phone.seen(), [], 'who has logged out stays so')
})

test('a life shorter than renewBefore is no reason to log in all the time', async () => {
  const phone = await loggedIn({ options: { renewBefore: 10 * HOUR } })
  await phone.ok(phone.auth.ready())
  await phone.ok(phone.auth.request({ url: '/checklogin' }))
  assert.deepEqual(phone.seen(), ['GET /checklogin 200'])
  phone.clock.advance(3700 * 1000)
  await phone.ok(phone.auth.ready())
  await phone.idle()
  assert.deepEqual(phone.seen(), LOGIN)
})

test('a phone whose clock is wrong by a day logs in once, over launches too, and knows the time left', async () => {
  for (const wrong of [-DAY, DAY]) {
    const phone = new Phone({ wrong })
    await phone.ok(phone.auth.ready())
    await phone.ok(phone.auth.request({ url: '/checklogin' }))
    await phone.ok(phone.auth.ready())
    assert.deepEqual(phone.seen(), [...LOGIN, 'GET /checklogin 200'])
    assert.ok(Math.abs(phone.auth.claims().expires_in - 7200) <= 3, String(phone.auth.claims().expires_in))
    const second = phone.relaunch({ wrong })
    await second.ok(second.auth.ready())
    assert.deepEqual(second.seen(), [])
    assert.ok(Math.abs(second.auth.claims().expires_in - 7200) <= 60)
    second.clock.advance(7201 * 1000)
    await second.ok(second.auth.ready())
    assert.deepEqual(second.seen(), LOGIN)
  }
})

test('a clock that is set while the app is open costs one login at most', async () => {
  for (const change of [DAY, -DAY]) {
    const phone = await loggedIn()
    phone.clock.set(change)
    for (let i = 0; i < 3; i++) {
      await phone.ok(phone.auth.request({ url: '/checklogin' }))
      await phone.idle()
    }
    assert.deepEqual(phone.counted(), { login: 1, 'POST /login 200': 1, 'GET /checklogin 200': 3 })
    assert.ok(Math.abs(phone.auth.claims().expires_in - 7200) <= 3)
  }
})

test('storage that throws or holds rubbish is as good as none', async () => {
  const other = await loggedIn({ options: {} })
  const good = other.stored
  const foreign = 'e30.' + Buffer.from(JSON.stringify({ openid: 'o', client_id: 'wx-other', iat: 1, exp: 4e9 }))
    .toString('base64url') + '.x'
  const rubbish = [
    undefined, null, 'undefined', 'token_1500000000000', 7, [], {}, { token: undefined },
    { token: 'a.b.c', exp: 1, offset: 0 },
    { token: foreign, exp: 4e9, offset: 0 }, { ...good, offset: 'x' }, { ...good, exp: good.exp + DAY },
    { ...good, token: 5 },
    { token: good.token, exp: good.exp }
  ]
  for (const kept of rubbish) {
    const phone = new Phone({ overrides: { getStorageSync: () => kept } })
    await phone.ok(phone.auth.ready())
    assert.deepEqual(phone.seen(), LOGIN, JSON.stringify(kept))
    assert.ok(phone.auth.claims().expires_in > 7000)
  }
  const broken = () => { throw new Error('storage is full') }
  const phone = new Phone({ overrides: { getStorageSync: broken, setStorageSync: broken, removeStorageSync: broken } })
  await phone.ok(phone.auth.ready())
  await phone.ok(phone.auth.request({ url: '/checklogin' }))
  phone.auth.logout()
  assert.equal(phone.auth.claims(), null)
  assert.deepEqual(phone.seen(), [...LOGIN, 'GET /checklogin 200'])
})

test('what is stored is of one app and one version of it', async () => {
  const storage = {}
  const release = await loggedIn({ storage })
  const trial = release.relaunch({ envVersion: 'trial' })
  assert.equal(trial.auth.claims(), null)
  await trial.ok(trial.auth.ready())
  assert.deepEqual(trial.seen(), LOGIN)
  assert.deepEqual(Object.keys(storage).sort(), [`authsvc:${APPID}:release`, `authsvc:${APPID}:trial`])
  release.auth.logout()
  assert.deepEqual(Object.keys(storage), [`authsvc:${APPID}:trial`])
})

test('logout forgets the token, also that of a login under way, and the next login starts after that one', async () => {
  const phone = await loggedIn()
  phone.auth.logout()
  assert.deepEqual([phone.auth.claims(), phone.storage], [null, {}])
  const waiting = [phone.auth.ready(), phone.auth.request({ url: '/checklogin' })]
  await new Promise(resolve => setImmediate(resolve))
  phone.auth.logout()
  const later = phone.auth.ready()
  const told = await phone.ok(Promise.all(waiting.map(one => one.catch(error => error.code))))
  assert.deepEqual(told, ['logged_out', 'logged_out'])
  await phone.ok(later)
  assert.deepEqual(phone.seen(), [...LOGIN, ...LOGIN])
  phone.auth.login().catch(() => {})
  await new Promise(resolve => setImmediate(resolve))
  phone.auth.logout()
  await phone.idle()
  assert.deepEqual([phone.auth.claims(), phone.storage], [null, {}])
})

test('logout ends the tries of the login under way, and adds nothing to what the next has to wait for', async () => {
  const phone = new Phone()
  phone.isOnline = false
  const waiting = phone.auth.ready().catch(error => error.code)
  await phone.idle() // it failed once, and waits for a second
  phone.auth.logout()
  phone.isOnline = true
  const [claims, error, seconds] = await phone.until(phone.auth.login())
  assert.deepEqual([claims && claims.appid, error, seconds], [APPID, null, 1])
  assert.equal(await waiting, 'logged_out')
  assert.deepEqual(phone.seen(), ['login', ...LOGIN])
})

test('what a server answers before a logout binds the login after it', async t => {
  const busy = { status: 429, headers: { 'Retry-After': '9' } }
  const it = await server(t, () => { phone.auth.logout(); return busy })
  const phone = new Phone({ options: { baseURL: it.url } })
  phone.auth.ready().catch(() => {})
  await phone.idle()
  assert.equal(it.requests.length, 1)
  const [, , seconds] = await phone.until(phone.auth.ready())
  assert.equal(seconds, 9)
  assert.equal(it.requests.length, 2)
})

test('login gets a new token although there is a good one', async () => {
  const phone = await loggedIn()
  const old = phone.stored.token
  const claims = await phone.ok(phone.auth.login())
  assert.notEqual(phone.stored.token, old)
  assert.ok(claims.expires_in > 7000)
  assert.deepEqual(phone.seen(), LOGIN)
})

test('the time comes from the reply, whatever the case of its name, and from the token where Date is missing or wrong',
  async t => {
    const real = await loggedIn()
    for (const [headers, date] of [[{}, false], [{ Date: 'yesterday' }, false],
      [{ Date: new Date(Date.now() + DAY * 1000).toUTCString() }, false]]) {
      const it = await server(t, () => ({ headers, date, body: { token: real.stored.token } }))
      const phone = new Phone({ wrong: -DAY, options: { baseURL: it.url } })
      await phone.ok(phone.auth.ready())
      assert.ok(Math.abs(phone.auth.claims().expires_in - 7200) <= 5, String(phone.auth.claims().expires_in))
      await phone.ok(phone.auth.ready())
      assert.deepEqual(phone.seen(), LOGIN)
    }
    for (const headerCase of [name => name.toLowerCase(), name => name.toUpperCase()]) {
      const late = new Date((Date.now() / 1000 + 30) * 1000).toUTCString() // what tells Date from the token's own time
      const it = await server(t, () => ({ headers: { Date: late }, date: false, body: { token: real.stored.token } }))
      const phone = new Phone({ wrong: DAY, headerCase, options: { baseURL: it.url } })
      await phone.ok(phone.auth.ready())
      assert.ok(Math.abs(phone.auth.claims().expires_in - 7170) <= 14, String(phone.auth.claims().expires_in))
    }
  })

test('check tells what the service says of the token, and a token that is not good is forgotten', async () => {
  const phone = await loggedIn()
  assert.equal((await phone.ok(phone.auth.check())).is_login, true)
  assert.deepEqual(phone.seen(), ['GET /checklogin 200'])
  assert.equal(phone.sent.at(-1).url, `${SERVICE}/checklogin`)
  const spoilt = phone.stored
  spoilt.token = spoilt.token.slice(0, -6) + 'AAAAAA'
  phone.storage[phone.key] = JSON.stringify(spoilt)
  const second = phone.relaunch()
  assert.deepEqual(await second.ok(second.auth.check()), { is_login: false, reason: 'invalid' })
  assert.deepEqual([second.auth.claims(), second.storage], [null, {}])
  assert.deepEqual(await second.ok(second.auth.check()), { is_login: false, reason: 'missing' })
  assert.deepEqual(second.seen(), ['GET /checklogin 200', 'GET /checklogin 200'])
})
