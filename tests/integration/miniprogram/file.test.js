// The file itself, as it is copied.
'use strict'

const test = require('node:test')
const assert = require('node:assert/strict')
const fs = require('node:fs')
const vm = require('node:vm')
const { AUTH } = require('./world')

const text = fs.readFileSync(AUTH, 'utf8')
/** Without comments, texts and regular expressions, as far as this file has them. */
const code = text.replace(/\/\*[^]*?\*\//g, '').replace(/(^|\s)\/\/.*$/gm, '')

test('the library is smaller than 12 KB, with its types', () => {
  assert.ok(Buffer.byteLength(text) < 12 * 1024, String(Buffer.byteLength(text)))
})

test('the library loads nothing, prints nothing, and touches nothing when it is loaded', () => {
  const words = ['require', 'console', 'import', 'eval', 'Function', 'globalThis', 'window', 'document', 'process']
  for (const word of words) {
    assert.doesNotMatch(code, new RegExp(`\\b${word}\\b`), word)
  }
  const module = { exports: {} }
  vm.runInNewContext(text, { module, Object, Error, Promise, String, JSON }, { filename: AUTH })
  assert.deepEqual(Object.keys(module.exports), ['createAuth', 'AuthError'])
})

test('the library has no syntax later than what base library 2.21 takes without a build step', () => {
  for (const [what, pattern] of Object.entries({
    'optional chaining': /\?\.(?!\d)/,
    'nullish coalescing': /\?\?/,
    'logical assignment': /(\|\||&&)=/,
    'the operator of powers': /\*\*/,
    async: /\b(async|await)\b/,
    generators: /\bfunction\s*\*|\byield\b/,
    'spread of objects': /[{,]\s*\.\.\./,
    'catch without a name': /\bcatch\s*\{/,
    'private members': /(^|[\s.])#\w/m,
    'class fields': /class \w+[^{]*\{\s*(static\s+)?\w+\s*=/,
    'bigint and separators': /\b\d+(n\b|_\d)/,
    'later methods': /\.(finally|flat|flatMap|matchAll|replaceAll|at|fromEntries|allSettled)\(/,
    'look-behind and named groups': /\(\?<|\/[a-z]*[sdvy][a-z]*\.(test|exec)/
  })) assert.doesNotMatch(code, pattern, what)
})
