const { explain } = require('../../errors.js')

/** @type {ReturnType<typeof import('../../auth.js').createAuth>} */
const auth = getApp().auth

Page({
  data: { busy: true, loggedIn: false, state: '', openid: '', left: '', said: '', error: '' },

  clock: 0,

  onLoad () {
    this.run(auth.ready().then(() => ''))
  },

  onShow () {
    this.clock = setInterval(() => this.show(), 1000)
  },

  onHide () {
    clearInterval(this.clock)
  },

  onUnload () {
    clearInterval(this.clock)
  },

  onCheck () {
    this.run(auth.check().then(found => found.is_login ? '服务确认：已登录' : '服务确认：未登录'))
  },

  onLogin () {
    this.run(auth.login().then(() => '已重新登录'))
  },

  onLogout () {
    auth.logout()
    this.setData({ said: '已退出登录', error: '' })
    this.show()
  },

  /**
   * A real program asks for this in its back end, to which it sends the code and its token: what a client says about
   * itself it can also have made up.
   * @param {WechatMiniprogram.ButtonGetPhoneNumber} event
   */
  onPhone ({ detail: { code, errMsg } }) {
    if (!code) {
      // Refused by the user, or not open to this program: WeChat gives the number to verified companies alone.
      this.setData({ said: '', error: /deny|cancel/.test(errMsg) ? '你没有同意使用手机号' : '暂时不能获取手机号' })
      return
    }
    const asked = auth.request({ url: '/session/phone', method: 'POST', data: { code } })
    this.run(asked.then(({ statusCode, data }) => {
      const answer = /** @type {{ purePhoneNumber: string }} */ (data)
      if (statusCode !== 200) throw answer || {}
      return `手机号末四位：${answer.purePhoneNumber.slice(-4)}`
    }))
  },

  /**
   * Shows that something is under way, and how it ended.
   * @param {Promise<string>} work gives what is said when it went well
   */
  run (work) {
    this.setData({ busy: true, said: '', error: '' })
    this.show()
    work.then(said => this.setData({ said }), error => this.setData({ error: explain(error) })).then(() => {
      this.setData({ busy: false })
      this.show()
    })
  },

  show () {
    const claims = auth.claims()
    const left = claims ? claims.expires_in : 0
    this.setData({
      loggedIn: left > 0,
      state: left > 0 ? '已登录' : this.data.busy ? '登录中…' : '未登录',
      openid: claims ? claims.openid.slice(-4) : '',
      left: left > 0 ? `${Math.floor(left / 60)} 分 ${Math.floor(left % 60)} 秒` : ''
    })
  }
})
