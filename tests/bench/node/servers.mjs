// The servers beside ours: node servers.mjs map|jwt PROCESSES PORT, with
// {"token", "publicKey", "privateKey", "wechat", "appid", "secret"} on stdin.
import cluster from 'node:cluster'
import { createPrivateKey, createPublicKey, randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import https from 'node:https'
import express from 'express'
import jwt from 'jsonwebtoken'

const [kind, processes, port] = process.argv.slice(2)
const text = process.env.GIVEN ?? readFileSync(0, 'utf8')
const { token, publicKey, privateKey, wechat, appid, secret } = JSON.parse(text)

// As the tutorials have it: a session of one's own making in a map.
const sessions = new Map([[token, { openid: 'oABC', session_key: 'x' }]])

// Read once: jsonwebtoken would parse a PEM anew for each token.
const verificationKey = createPublicKey(publicKey)
const signingKey = createPrivateKey(privateKey)

// It would close those beyond 256 that are free, and connect anew for the next login.
const agent = new https.Agent({ keepAlive: true, maxFreeSockets: 1000 })

function code2Session(code) {
  const query = new URLSearchParams({ appid, secret, js_code: code, grant_type: 'authorization_code' })
  return new Promise((resolve, reject) => {
    const request = https.get(`${wechat}/sns/jscode2session?${query}`, { agent }, response => {
      let body = ''
      response.setEncoding('utf8')
      response.on('data', part => { body += part })
      response.on('error', reject)
      response.on('end', () => {
        try {
          resolve(JSON.parse(body))
        } catch (error) {
          reject(error)
        }
      })
    })
    request.on('error', reject)
  })
}

function newToken(session) {
  if (kind === 'map') {
    const made = randomUUID()
    sessions.set(made, session)
    return made
  }
  sessions.set(session.openid, session)
  return jwt.sign({ openid: session.openid }, signingKey, {
    algorithm: 'ES256',
    expiresIn: 7200,
    issuer: 'https://auth.example.com',
    audience: 'api',
    subject: session.openid,
    jwtid: randomUUID(),
  })
}

function serve() {
  const app = express()
  app.use(express.json())
  app.use(express.urlencoded({ extended: false }))

  app.post('/login', async (request, response) => {
    const session = await code2Session(request.body.code)
    if (!session.openid) {
      response.status(401).json(session)
      return
    }
    response.json({ token: newToken(session) })
  })

  app.get('/checklogin', (request, response) => {
    if (kind === 'map') {
      response.json({ is_login: sessions.has(request.query.token) })
      return
    }
    try {
      jwt.verify(request.query.token, verificationKey, { algorithms: ['ES256'] })
      response.json({ is_login: true })
    } catch {
      response.json({ is_login: false })
    }
  })

  app.listen(Number(port), '127.0.0.1')
}

if (Number(processes) > 1 && cluster.isPrimary) {
  for (let number = 0; number < Number(processes); number++) cluster.fork({ GIVEN: text })
} else {
  serve()
}
