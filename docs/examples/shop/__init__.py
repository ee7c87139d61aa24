"""
A small shop whose work goes on after the response: an application to read, to run and to copy from.

```text
app.py        puts it together: lifespan, add_tasks(), routers
users.py      sign-up             after the response: a welcome e-mail
products.py   a page and a cache  after the route: the audit log; after the response: the cache is invalidated
images.py     uploaded pictures   at once: thumbnails and the search index
orders.py     orders              at once: analytics; after the response: e-mail; after an error: the stock is released
payments.py   payments            durable: stored before the response begins, made by a worker, with retries
resources.py  what endpoints and tasks work with, made once in the lifespan
database.py   a pool of SQLite connections, and the dependency that commits
mail.py, gateway.py, search.py, analytics.py   the outside world
sandbox.py    a mail server and a payment gateway to try the shop with
timeline.py   what happened in each request, and when: an observer of the tasks
demo.py       runs all of it: `hatch run demo`; to try it by hand: `hatch run serve`, then open /docs
```

A task gets what it needs as arguments, the resources first: when it runs, the request and its database connection are
gone.
"""
