// A phone with one page of a mini-program on it: `node screen.js FOLDER SANDBOX STORAGE.JSON [NAME]`.
// Each line of standard input is an order, answered by one line: what the page shows, and what was asked for it.
// wx.* do as WeChat documents, over real HTTP. With NAME, they are under that name and give promises too, as Taro does.
'use strict'

const fs = require('node:fs')
const path = require('node:path')
const readline = require('node:readline')

const [folder, sandbox, storageFile, name] = process.argv.slice(2)
const QUIET_WITHIN_MS = 20000
const at = file => path.resolve(folder, file)
const json = file => JSON.parse(fs.readFileSync(at(file), 'utf8'))

const storage = fs.existsSync(storageFile) ? JSON.parse(fs.readFileSync(storageFile, 'utf8')) : {}
const keep = () => fs.writeFileSync(storageFile, JSON.stringify(storage))
const shown = []
let events = []
let offline = false
let under = 0
let app = null
let page = null

// A page that is gone and still has a clock would go on for ever.
const clocks = new Set()
const { setInterval: start, clearInterval: stop } = global
global.setInterval = (...given) => {
  const clock = start(...given)
  clocks.add(clock)
  return clock
}
global.clearInterval = clock => {
  clocks.delete(clock)
  stop(clock)
}

// Calls back once, some time later, as WeChat does; and says so to `complete` too.
function later (work) {
  return ({ success = () => {}, fail = () => {}, complete = () => {}, ...options } = {}) => {
    under += 1
    setTimeout(() => work(options).then(
      found => { success(found); complete(found) },
      error => { fail(error); complete(error) }
    ).finally(() => { under -= 1 }), 1)
    return { abort: () => {} }
  }
}

const platform = {
  login: later(async () => {
    events.push('wx.login')
    if (offline) throw { errMsg: 'login:fail network error' }
    const reply = await fetch(`${sandbox}/sandbox/code`, { method: 'POST', body: '{"user": "screen"}' })
    return { code: (await reply.json()).code, errMsg: 'login:ok' }
  }),
  request: later(async ({ url, method = 'GET', data, header = {} }) => {
    const target = new URL(url)
    events.push(`${method.toUpperCase()} ${target.pathname}`)
    if (offline) throw { errMsg: 'request:fail ', errno: 5 }
    const isGet = method.toUpperCase() === 'GET'
    if (isGet) for (const [key, value] of Object.entries(data || {})) target.searchParams.set(key, value)
    const reply = await fetch(target, {
      method: method.toUpperCase(),
      headers: { 'content-type': 'application/json', ...header },
      body: isGet ? undefined : JSON.stringify(data)
    })
    const text = await reply.text()
    let body = text
    try { body = JSON.parse(text) } catch { /* a text stays one */ }
    const headers = {}
    // As servers write them; no phone puts them all in small letters.
    reply.headers.forEach((value, key) => { headers[key.replace(/(^|-)[a-z]/g, letter => letter.toUpperCase())] = value })
    return { statusCode: reply.status, data: body, header: headers, errMsg: 'request:ok' }
  }),
  checkSession: later(async () => ({ errMsg: 'checkSession:ok' })),
  setStorage: later(async ({ key, data }) => { storage[key] = data; keep() }),
  removeStorage: later(async ({ key }) => { delete storage[key]; keep() }),
  getStorageSync: key => storage[key] ?? '',
  setStorageSync: (key, data) => { storage[key] = data; keep() },
  removeStorageSync: key => { delete storage[key]; keep() },
  getAccountInfoSync: () => ({ miniProgram: { appId: json('project.config.json').appid, envVersion: 'develop', version: '' } }),
  onAppShow: listener => shown.push(listener),
  offAppShow: () => {}
}

// Taro's give a promise whether or not there are callbacks, which is rejected where `fail` is called.
function withPromises (wx) {
  const promising = call => (options = {}) => new Promise((resolve, reject) => call({
    ...options,
    success: found => { options.success?.(found); resolve(found) },
    fail: error => { options.fail?.(error); reject(error) }
  }))
  return { ...wx, ...Object.fromEntries(['login', 'request', 'checkSession', 'setStorage', 'removeStorage'].map(call => [call, promising(wx[call])])) }
}

global[name || 'wx'] = name ? withPromises(platform) : platform
global.App = options => { app = options }
global.getApp = () => app
global.Page = options => {
  page = {
    ...options,
    data: structuredClone(options.data),
    setData (changes) {
      for (const key of Object.keys(changes)) if (!(key in this.data)) throw new Error(`${key} is not in the page's data`)
      // What crosses to the view is copied, and has to be plain.
      this.data = { ...this.data, ...JSON.parse(JSON.stringify(changes)) }
    }
  }
}

// ---- the view: enough of WXML for this page -----------------------------------------------------

function value (text) {
  const names = Object.keys(page.data)
  const put = expression => new Function(...names, `return (${expression})`)(...names.map(key => page.data[key]))
  const whole = text.match(/^{{([^{}]*)}}$/)
  return whole ? put(whole[1]) : text.replace(/{{([^{}]*)}}/g, (_, expression) => put(expression))
}

function look () {
  const texts = []
  const buttons = []
  const open = []
  let before = true // whether the last wx:if of this row was true
  for (const [, closing, tag, attributes, text] of fs.readFileSync(at('pages/index/index.wxml'), 'utf8')
    .matchAll(/<(\/?)([a-z-]+)([^>]*)>|([^<]+)/g)) {
    const here = open.at(-1)
    if (closing) {
      if (open.pop().tag !== tag) throw new Error(`</${tag}> closes something else`)
    } else if (tag) {
      const given = Object.fromEntries([...attributes.matchAll(/([\w:-]+)(?:="([^"]*)")?/g)].map(([, key, of = '']) => [key, of]))
      const element = { tag, given, visible: !here || here.visible, button: here && here.button }
      if ('wx:if' in given) before = Boolean(value(given['wx:if']))
      if (('wx:if' in given && !before) || ('wx:else' in given && before)) element.visible = false
      if (tag === 'button' && element.visible) {
        element.button = { text: '', disabled: Boolean(value(given.disabled)), given }
        buttons.push(element.button)
      }
      open.push(element)
    } else if (text.trim() && here.visible) {
      if (here.button) here.button.text += value(text.trim())
      else texts.push(String(value(text.trim())))
    }
  }
  if (open.length) throw new Error(`<${open[0].tag}> is not closed`)
  return { texts, buttons }
}

function tap (text, detail) {
  const button = look().buttons.find(one => one.text === text)
  if (!button || button.disabled) throw new Error(`there is no button "${text}" to press`)
  const handler = button.given['open-type'] === 'getPhoneNumber' ? button.given.bindgetphonenumber : button.given.bindtap
  page[handler]({ detail })
}

const ORDERS = {
  launch () {
    require(at('app.js'))
    app.onLaunch({})
    for (const file of json('app.json').pages) require(at(`${file}.js`))
    page.onLoad({})
    shown.forEach(listener => listener({}))
    page.onShow()
  },
  tap: ({ button, detail = {} }) => tap(button, detail),
  offline: ({ on }) => { offline = on },
  wait: ({ ms }) => new Promise(resolve => setTimeout(resolve, ms)),
  close () {
    page.onUnload()
    if (clocks.size) throw new Error('the page has left its clock running')
  }
}

async function quiet () {
  const giveUpAt = Date.now() + QUIET_WITHIN_MS
  while (under > 0 || page.data.busy) {
    if (Date.now() > giveUpAt) throw new Error('the page stays busy')
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}

;(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { order, ...options } = JSON.parse(line)
    const done = ORDERS[order](options)
    const atOnce = page.data.state
    await done
    if (order !== 'close') await quiet()
    const { texts, buttons } = look()
    const seen = buttons.map(({ text, disabled }) => ({ text, disabled }))
    process.stdout.write(JSON.stringify({ at_once: atOnce, data: page.data, texts, buttons: seen, events }) + '\n')
    events = []
    if (order === 'close') process.exit(0)
  }
})()
