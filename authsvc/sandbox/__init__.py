"""WeChat in miniature, for development and tests: `python -m authsvc.sandbox` stands in for api.weixin.qq.com."""
