"""The page in the browser: pictures are dropped on it, restored by a loaded model, and looked at.

offers: the runs there are, and what each can do. pictures: uploads, taken with care, and what is shown of them.
visitors: what each visitor has. restoring: one restoration, which can be watched and stopped. layout: the page itself.
guard: what the server answers, and what not. serve: from settings to a server.
"""
