"""`andes_serve.ray:app`: the server as a Ray Serve application, on many machines.

    serve run andes_serve.ray:app model=model.andes backend=numba replicas=2

Ray's proxies spread requests over replicas, each of which is a whole server with a model of its own. Requests that run
on a replica that dies get an error; later ones go to those that are left, until Ray has started another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen
from ray import serve

from andes_sdk.config import structure
from andes_sdk.errors import ConfigError
from andes_serve.door import Door, keys_of


@frozen(kw_only=True)
class Application:
    """Arguments of the application; on the command line of `serve run` as `name=value`.

    Attributes:
        model: as `andes serve` takes it; every machine needs it at this path. name: what requests call it.
        replicas: servers; with `most` above it, as many as requests need.
        target: requests in a replica at which another one is started. cpus, gpus: of each replica.
        adapters: name -> folder. concurrency: answers in the making at once, of one replica.
        keys: file with API keys, one a line, on the machine where the application is built; ANDES_API_KEY there holds
            some too. Replicas get them from there, so that all have the same.
    """

    model: str
    name: str = ""
    backend: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    replicas: int = 1
    most: int = 0
    target: float = 8.0
    cpus: float = 1.0
    gpus: float = 0.0
    concurrency: int = 32
    adapters: dict[str, str] = field(factory=dict)
    keys: str | None = None
    allowed: tuple[str, ...] = field(init=False, repr=False)

    @allowed.default
    def _of_the_builder(self) -> tuple[str, ...]:
        return keys_of(os.environ.get("ANDES_API_KEY"), None if self.keys is None else Path(self.keys))

    def build(self) -> Any:
        """The ASGI application of one replica; runs on its machine."""
        from andes_sdk.pipeline import Pipeline
        from andes_serve.app import create_app
        from andes_serve.limits import Limits
        from andes_serve.server import Server

        pipeline = Pipeline.from_pretrained(self.model, backend=self.backend, device=self.device, dtype=self.dtype)
        for name, folder in self.adapters.items():
            pipeline.add_adapter(name, folder)
        # adapters come with the application: one that a single replica has would answer now and then
        own = set(keys_of(os.environ.get("ANDES_API_KEY"), None)) - set(self.allowed)
        if own:
            fix = "set it where the application is built, or give keys=FILE there"
            raise ConfigError("this replica's ANDES_API_KEY has keys that others lack", who="andes_serve.ray", fix=fix)
        door = Door(self.allowed)
        limits = Limits(concurrency=self.concurrency)
        server = Server(pipeline, self.name, limits, door, {"temperature": 0.0}, adapters=list(self.adapters))
        return create_app(server)


NUMBERS = {"replicas": int, "most": int, "concurrency": int, "target": float, "cpus": float, "gpus": float}


def app(args: Mapping[str, Any]) -> Any:
    """Build the application.

    Raises:
        ConfigError: an argument that is not known or does not fit.
    """
    given = dict(args)
    for name, kind in NUMBERS.items():  # the command line gives texts
        if isinstance(given.get(name), str):
            try:
                given[name] = kind(given[name])
            except ValueError as error:
                raise ConfigError(f"{name}: {error}", who="andes_serve.ray") from None
    one = structure(Application, given, "andes_serve.ray")
    one = evolve(one, name=one.name or Path(one.model).stem)
    how: dict[str, Any] = {"num_replicas": one.replicas}
    if one.most > one.replicas:
        how = {
            "autoscaling_config": {
                "min_replicas": one.replicas, "max_replicas": one.most, "target_ongoing_requests": one.target,
            }
        }  # fmt: skip

    def build() -> Any:  # Ray takes a plain function for a builder, and a method for an application
        return one.build()

    replica: Any = serve.deployment(
        serve.ingress(build)(), name="andes", max_ongoing_requests=4 * one.concurrency,
        ray_actor_options={"num_cpus": one.cpus, "num_gpus": one.gpus}, health_check_period_s=2,
        graceful_shutdown_timeout_s=30, **how,
    )  # fmt: skip
    return replica.bind()
