// A service in Node that verifies with the snippet of the README: tokens come line by line, verdicts go back.
import { createInterface } from 'node:readline'

const { verify } = await import(process.argv[2])
for await (const token of createInterface({ input: process.stdin })) {
  let verdict
  try {
    const claims = await verify(token)
    verdict = { accepted: true, openid: claims.sub }
  } catch (error) {
    verdict = { accepted: false, reason: error.code ?? error.message }
  }
  console.log(JSON.stringify(verdict))
}
