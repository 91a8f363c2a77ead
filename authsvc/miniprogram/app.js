const { createAuth } = require('./auth.js')

App({
  // Pages use it as getApp().auth. The token stays inside: no page needs to read it.
  auth: createAuth({ baseURL: '{{url}}' }),

  onLaunch () {
    // Begun early, so that the first page waits less. Whoever awaits ready() is told what went wrong.
    this.auth.ready().catch(() => {})
  }
})
