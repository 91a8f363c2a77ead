// A phone for one launch of a mini-program: `node phone.js APP.JS SERVICE SANDBOX STORAGE.JSON`.
// wx.* do as WeChat documents, over real HTTP; what happened is printed as one JSON object at the end.
'use strict'

const fs = require('node:fs')
const path = require('node:path')

const [appFile, service, sandbox, storageFile] = process.argv.slice(2)
const events = []
const pending = new Set()
const storage = fs.existsSync(storageFile) ? JSON.parse(fs.readFileSync(storageFile, 'utf8')) : {}
let app = null

function track (work) {
  const promise = work().finally(() => pending.delete(promise))
  pending.add(promise)
}

global.console = { ...console, log: (...args) => events.push({ log: args.join('') }) }
global.App = options => { app = options }
global.wx = {
  login: ({ success }) => track(async () => {
    events.push({ wx: 'login' })
    const reply = await fetch(`${sandbox}/sandbox/code`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ user: 'phone' })
    })
    success({ code: (await reply.json()).code, errMsg: 'login:ok' })
  }),
  // GET data become the query, other data JSON; `success` comes with every status that arrives.
  request: ({ url, method = 'GET', data = {}, header = {}, success }) => track(async () => {
    const target = new URL(url.replace('http://127.0.0.1:3000', service))
    const isGet = method.toUpperCase() === 'GET'
    if (isGet) for (const [name, value] of Object.entries(data)) target.searchParams.set(name, value)
    const reply = await fetch(target, {
      method: method.toUpperCase(),
      headers: { 'content-type': 'application/json', ...header },
      body: isGet ? undefined : JSON.stringify(data)
    })
    const body = await reply.text()
    events.push({ request: `${method.toUpperCase()} ${target.pathname}`, status: reply.status })
    success({ statusCode: reply.status, data: JSON.parse(body), header: Object.fromEntries(reply.headers) })
  }),
  getStorageSync: key => storage[key] ?? '',
  setStorage: ({ key, data }) => {
    storage[key] = data
    fs.writeFileSync(storageFile, JSON.stringify(storage))
  }
}

require(path.resolve(appFile))
app.onLaunch()
;(async () => {
  while (pending.size) await Promise.all(pending)
  process.stdout.write(JSON.stringify({ events, token: app.globalData.token }) + '\n')
})()
