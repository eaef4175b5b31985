"""Enough of Ray in one process to see what becomes of a run when workers die, without a cluster."""

from types import SimpleNamespace

import cloudpickle


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


def sent(value):
    return cloudpickle.loads(cloudpickle.dumps(value, protocol=5))


class Task:
    """A call that is made when somebody waits for it; what crosses is pickled, as Ray does."""

    def __init__(self, actor, method, arguments):
        self.actor, self.method, self.arguments = actor, method, arguments

    def outcome(self, ray):
        if self.actor.dead or ray.dies(self.actor, self.method):
            self.actor.dead = True
            raise RayError(f"actor {self.actor.number} was killed")
        arguments = self.resolved(ray)
        ray.calls.append((self.actor.number, self.method, arguments))
        try:
            return sent(getattr(self.actor.held, self.method)(*sent(arguments)))
        except Exception as error:
            raise RayTaskError(error) from error

    def resolved(self, ray):
        return [ray.store.get(a, a) if isinstance(a, str) else a for a in self.arguments]


class Stream(Task):
    """A generator's call: each ``next`` is one answer."""

    items = None

    def __next__(self):
        return self

    def outcome(self, ray):
        if self.actor.dead or ray.dies(self.actor, self.method):
            self.actor.dead = True
            raise RayError(f"actor {self.actor.number} was killed")
        if self.items is None:
            self.items = getattr(self.actor.held, self.method)(*sent(self.resolved(ray)))
        try:
            return sent(next(self.items))
        except StopIteration:
            raise
        except Exception as error:
            raise RayTaskError(error) from error


class Method:
    def __init__(self, actor, name, kind=Task):
        self.actor, self.name, self.kind = actor, name, kind

    def options(self, num_returns=None):
        return Method(self.actor, self.name, Stream if num_returns else Task)

    def remote(self, *arguments):
        return self.kind(self.actor, self.name, arguments)


class Actor:
    def __init__(self, number, held):
        self.number, self.held, self.dead = number, held, False

    def __getattr__(self, name):
        return Method(self, name)


class FakeRay:
    """``dies(actor, method)`` says whose call ends with the worker."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *, cores, dies=lambda actor, method: False):
        self.cores, self.dies, self.store, self.calls, self.actors = cores, dies, {}, [], []
        self.turn = 0

    def cluster_resources(self):
        return {"CPU": self.cores, "object_store_memory": 10**9}

    def remote(self, **options):
        def made(kind):
            def begin():
                self.actors.append(Actor(len(self.actors), kind()))
                return self.actors[-1]

            return SimpleNamespace(remote=begin)

        return made

    def put(self, value):
        name = f"object {len(self.store)}"
        self.store[name] = value
        return name

    def get(self, task):
        return task.outcome(self)

    def wait(self, tasks, *, num_returns, timeout, fetch_local):
        # Now this one, now that one: the order in which workers are done must not matter.
        self.turn += 1
        one = tasks[-self.turn % len(tasks)]
        return [one], [task for task in tasks if task is not one]

    def kill(self, actor):
        actor.dead = True
