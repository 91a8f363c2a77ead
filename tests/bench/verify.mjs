// The Node side of the benchmark: "name" comes in, the microseconds for each token go out.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { createPublicKey } from 'node:crypto'
import { createRequire } from 'node:module'

const { tokens, jwk, issuer, audience } = JSON.parse(readFileSync(process.argv[2]))
const require = createRequire(process.argv[3])
const { createVerifier } = require('fast-jwt')
const { importJWK, jwtVerify } = await import(require.resolve('jose'))

const key = await importJWK(jwk, 'ES256')
const pem = createPublicKey({ key: jwk, format: 'jwk' }).export({ type: 'spki', format: 'pem' })
const options = { key: pem, algorithms: ['ES256'], allowedIss: issuer, allowedAud: audience, requiredClaims: ['exp'] }
const uncached = createVerifier({ ...options, cache: false })
const cached = createVerifier({ ...options, cache: 10_000 })
for (const token of tokens) cached(token)

const contenders = {
  jose: async () => {
    for (let i = 0; i < tokens.length; i += 32) {
      await Promise.all(tokens.slice(i, i + 32).map(t => jwtVerify(t, key, { issuer, audience, algorithms: ['ES256'] })))
    }
  },
  'fast-jwt': () => { for (const token of tokens) uncached(token) },
  'fast-jwt, seen': () => { for (let i = 0; i < 20; i++) for (const token of tokens) cached(token) }
}
for await (const name of createInterface({ input: process.stdin })) {
  const began = process.hrtime.bigint()
  await contenders[name]()
  const count = tokens.length * (name.endsWith('seen') ? 20 : 1)
  console.log(Number(process.hrtime.bigint() - began) / 1000 / count)
}
