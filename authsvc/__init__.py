"""Login for WeChat mini-programs: a code in, a signed token out, verified by anyone with no lookup."""
