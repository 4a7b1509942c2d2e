"""The host's services can be stopped, as far as docs/policy.md goes."""

from arc_agent import handler


@handler("service.stop")
def stop(params: dict[str, str]) -> str:
    return params["service"]


@handler("service.restart")
def restart(params: dict[str, str]) -> str:
    return params["service"]
