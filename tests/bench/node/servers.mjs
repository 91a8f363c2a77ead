// The servers beside ours: node servers.mjs map|jwt PORT, with {"token", "publicKey"} on stdin.
import { readFileSync } from 'node:fs'
import express from 'express'
import jwt from 'jsonwebtoken'

const [kind, port] = process.argv.slice(2)
const { token, publicKey } = JSON.parse(readFileSync(0, 'utf8'))
const app = express()
app.use(express.json())
app.use(express.urlencoded({ extended: false }))

// As the tutorials have it: a session of one's own making in a map.
const sessions = new Map([[token, { openid: 'oABC', session_key: 'x' }]])

app.get('/checklogin', (request, response) => {
  if (kind === 'map') {
    response.json({ is_login: sessions.has(request.query.token) })
    return
  }
  try {
    jwt.verify(request.query.token, publicKey, { algorithms: ['ES256'] })
    response.json({ is_login: true })
  } catch {
    response.json({ is_login: false })
  }
})

app.listen(Number(port), '127.0.0.1')
