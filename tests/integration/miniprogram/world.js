// A phone with the library on it, and what it talks to: the real service, with the sandbox behind it, both started by
// test_miniprogram.py, which also stops, starts and rotates what a test wants; and servers of the test's own.
// Time is the phone's: nothing here waits for a real second.
'use strict'

const assert = require('node:assert/strict')
const http = require('node:http')
const path = require('node:path')

const AUTH = process.env.AUTH_JS || path.resolve(__dirname, '../../../authsvc/miniprogram/auth.js')
const { createAuth, AuthError } = require(AUTH)
const { SERVICE, SANDBOX, CONTROL, APPID } = process.env
const DAY = 86400
let users = 0

async function order (base, what, body = {}) {
  const reply = await fetch(`${base}/${what}`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body)
  })
  assert.equal(reply.status, 200, `${what}: ${await reply.clone().text()}`)
  return reply.json()
}

const sandbox = (what, body) => order(SANDBOX, `sandbox/${what}`, body)
/** Has the pytest process do something to the service: stop, start, restart, revoke, ban, unban. */
const control = (what, body) => order(CONTROL, what, body)

async function exchanges () {
  const reply = await fetch(`${SANDBOX}/sandbox/calls`)
  return (await reply.json()).jscode2session
}

/** A clock that is moved by hand, `wrong` by so many seconds. */
class Clock {
  constructor (wrong = 0) {
    this.ms = Date.now() + wrong * 1000
    this.passed = 0
    this.timers = []
    this.now = () => this.ms
    this.setTimeout = (run, ms) => this.timers.push({ at: this.passed + ms, run })
  }

  /** Time passes, and timers run. */
  advance (ms) {
    const end = this.passed + ms
    for (;;) {
      const [next] = this.timers.filter(timer => timer.at <= end).sort((a, b) => a.at - b.at)
      if (!next) break
      this.timers.splice(this.timers.indexOf(next), 1)
      this.ms += Math.max(0, next.at - this.passed)
      this.passed = Math.max(this.passed, next.at)
      next.run()
    }
    this.ms += end - this.passed
    this.passed = end
  }

  /** The user sets it. */
  set (seconds) { this.ms += seconds * 1000 }
}

/** One request over HTTP, as a phone sends it: header names come back as the server wrote them. */
function exchange (url, { method, header, body }) {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method, headers: header, agent: false }, reply => {
      const chunks = []
      reply.on('data', chunk => chunks.push(chunk))
      reply.on('error', reject)
      reply.on('end', () => {
        const header = {}
        for (let i = 0; i < reply.rawHeaders.length; i += 2) header[reply.rawHeaders[i]] = reply.rawHeaders[i + 1]
        resolve({ statusCode: reply.statusCode, header, text: Buffer.concat(chunks).toString() })
      })
    })
    request.on('error', reject)
    request.end(body)
  })
}

class Phone {
  /** `storage` and `user` are kept over launches; `overrides` replace functions of wx. */
  constructor ({ storage = {}, user = `phone-${process.pid}-${++users}`, wrong = 0, envVersion = 'release',
    headerCase = name => name, random = () => 1, options = {}, overrides = {}, events = [] } = {}) {
    Object.assign(this, { storage, user, events, headerCase, clock: new Clock(wrong) })
    this.isOnline = true
    this.codeOrder = {} // what the sandbox is told when a code is made
    this.codes = [] // that wx.login gave
    this.sent = [] // requests, whole
    this.shows = []
    this.pending = 0
    this.waits = false // for something: there is one clock, so only one may move it
    const track = work => { this.work(work) }
    this.wx = {
      getAccountInfoSync: () => ({ miniProgram: { appId: APPID, envVersion } }),
      login: given => track(async () => {
        this.events.push('login')
        if (!this.isOnline) return () => this.answer(given, 'fail', { errMsg: 'login:fail network error' })
        const { code } = await sandbox('code', { user: this.user, ...this.codeOrder })
        this.codes.push(code)
        return () => this.answer(given, 'success', { code, errMsg: 'login:ok' })
      }),
      checkSession: given => track(async () => {
        this.events.push('checkSession')
        const good = !this.sessionKeyIsGone
        return () => this.answer(given, good ? 'success' : 'fail', { errMsg: `checkSession:${good ? 'ok' : 'fail'}` })
      }),
      request: given => track(async () => this.request(given)),
      getStorageSync: key => key in storage ? JSON.parse(storage[key]) : '',
      setStorageSync: (key, value) => { storage[key] = JSON.stringify(value) },
      removeStorageSync: key => { delete storage[key] },
      onAppShow: listener => this.shows.push(listener),
      ...overrides
    }
    this.auth = createAuth({
      baseURL: SERVICE, wx: this.wx, clock: this.clock, random, ...options
    })
  }

  /** Asks WeChat or a server, over real sockets: until that is over, no time passes. */
  async work (start) {
    this.pending += 1
    const tell = await start()
    this.pending -= 1
    if (tell) tell()
  }

  answer (given, name, result) {
    if (given[name]) given[name](result)
    if (given.complete) given.complete(result)
  }

  async request (given) {
    const url = String(given.url)
    const method = given.method || 'GET'
    this.sent.push({ ...given, success: undefined, fail: undefined, complete: undefined })
    const name = `${method} ${url.startsWith('http://127.0.0.1:') ? new URL(url).pathname : url}`
    if (!this.isOnline) {
      this.events.push(`${name} offline`)
      return () => this.answer(given, 'fail', { errMsg: 'request:fail net::ERR_INTERNET_DISCONNECTED', errno: 5 })
    }
    const target = new URL(url)
    const isGet = method === 'GET'
    if (isGet) for (const [key, value] of Object.entries(given.data || {})) target.searchParams.set(key, value)
    const body = isGet ? undefined : JSON.stringify(given.data || {})
    let reply
    try {
      reply = await exchange(target, { method, header: { 'content-type': 'application/json', ...given.header }, body })
    } catch (error) {
      this.events.push(`${name} unreachable`)
      return () => this.answer(given, 'fail', { errMsg: 'request:fail connection refused' })
    }
    this.events.push(`${name} ${reply.statusCode}`)
    let data = reply.text
    try { data = JSON.parse(reply.text) } catch (error) {} // as wx: then it is a text
    const header = Object.fromEntries(Object.entries(reply.header).map(([key, value]) => [this.headerCase(key), value]))
    return () => this.answer(given, 'success', { statusCode: reply.statusCode, header, data, errMsg: 'request:ok' })
  }

  /** Until nothing is under way but timers. */
  async idle () {
    let quiet = 0
    while (quiet < 3) {
      await new Promise(resolve => setImmediate(resolve))
      if (this.pending) await new Promise(resolve => setTimeout(resolve, 2))
      quiet = this.pending ? 0 : quiet + 1
    }
  }

  /** Lets time pass, from timer to timer, until it is settled. Resolves with [value, error, seconds that passed]. */
  async until (promise) {
    assert.ok(!this.waits, 'one wait at a time')
    this.waits = true
    const began = this.clock.passed
    let outcome = null
    promise.then(value => { outcome = [value, null] }, error => { outcome = [undefined, error] })
    await this.idle()
    while (!outcome) {
      const [next] = this.clock.timers.map(timer => timer.at).sort((a, b) => a - b)
      assert.notEqual(next, undefined, 'it waits for nothing')
      this.clock.advance(Math.max(0, next - this.clock.passed))
      await this.idle()
    }
    this.waits = false
    return [...outcome, (this.clock.passed - began) / 1000]
  }

  async ok (promise) {
    const [value, error] = await this.until(promise)
    if (error) throw error
    return value
  }

  /** The error that it ends with, which is one of ours. */
  async fails (promise, expected) {
    const [, error, seconds] = await this.until(promise)
    assert.ok(error instanceof AuthError, `an AuthError, not ${error}`)
    assert.equal(error.name, 'AuthError')
    for (const [name, value] of Object.entries(expected)) assert.equal(error[name], value, `${name} of ${error}`)
    return { error, seconds }
  }

  /** What has happened since the last look. */
  seen () { return this.events.splice(0) }

  counted () {
    const counts = {}
    for (const event of this.seen()) counts[event] = (counts[event] || 0) + 1
    return counts
  }

  get key () { return `authsvc:${APPID}:release` }
  get stored () { return this.storage[this.key] && JSON.parse(this.storage[this.key]) }
  show () { for (const listener of this.shows) listener({}) }
  /** The same phone, launched anew. */
  relaunch (more = {}) { return new Phone({ storage: this.storage, user: this.user, ...more }) }
}

async function loggedIn (given) {
  const phone = new Phone(given)
  await phone.ok(phone.auth.ready())
  phone.seen()
  return phone
}

/** A server of the test's own, on loopback: `answer(request, body)` → {status, headers, body}. */
async function server (t, answer) {
  const requests = []
  const it = http.createServer((request, response) => {
    let body = ''
    request.on('data', chunk => { body += chunk })
    request.on('end', async () => {
      requests.push({ method: request.method, url: request.url, headers: request.headers, body })
      const { status = 200, headers = {}, body: said = {}, date = true } = await answer(request, body)
      response.sendDate = date
      response.writeHead(status, { 'Content-Type': 'application/json', ...headers })
      response.end(typeof said === 'string' ? said : JSON.stringify(said))
    })
  })
  await new Promise(resolve => it.listen(0, '127.0.0.1', resolve))
  t.after(() => it.close())
  const { port } = it.address()
  return { url: `http://127.0.0.1:${port}`, host: `127.0.0.1:${port}`, requests }
}

/** A back end of the user's: it has the service verify each token, or answers 401 while `refuses(token)`. */
async function backEnd (t) {
  const it = await server(t, async request => {
    const authorization = request.headers.authorization || ''
    if (it.refuses(authorization)) return { status: 401, body: { error: 'no' } }
    const reply = await fetch(`${SERVICE}/checklogin`, { headers: { authorization } })
    const { is_login: isLogin } = await reply.json()
    return isLogin ? { body: { hello: true } } : { status: 401, body: { error: 'no' } }
  })
  it.refuses = () => false
  return it
}

module.exports = {
  AUTH, APPID, SERVICE, DAY, AuthError, Phone, backEnd, control, createAuth, exchanges, loggedIn, sandbox, server
}
