"""
A small shop whose work goes on after the response: an application to read, run and copy.

```text
app.py        the application: lifespan, add_tasks(), routers
users.py      sign-up             after the response: a welcome e-mail
products.py   a page and a cache  after the route: the audit log; after the response: the cache is invalidated
              a download          after the response: the temporary file is deleted
images.py     uploaded pictures   at once: thumbnails and the search index; a rename: the index again, one at a time
orders.py     orders              at once: analytics; after the response: e-mail; after an error: the stock is released
payments.py   payments            durable: stored before the response begins, run by a worker, with retries
reports.py    a report            each night at three, as a periodic task
resources.py  the resources of endpoints and tasks, opened once in the lifespan
database.py   a pool of SQLite connections, and the dependency that commits
mail.py, gateway.py, search.py, analytics.py   clients of other systems
sandbox.py    a mail server and a payment gateway to try the shop with
timeline.py   an observer of the tasks: it records what happened in each request, and when
demo.py       runs all of it: `hatch run demo`; to try it by hand: `hatch run serve`, then open /docs
```

A task gets what it needs as arguments, the resources first, or as dependencies of its own: the request has ended and
its database connection is closed when the task runs.
"""
