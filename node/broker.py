"""How node and workers talk to Celery: one configuration for both ends, and the name of the one task.

The broker carries hints of one job id each. It may lose, double or delay them: the ledger knows better.
"""

from __future__ import annotations

import ssl
from typing import Any

from node.errors import ConfigurationError
from node.settings import Settings

SEGMENT_TASK = "pennode.segment"

# Longer than any job lives in a queue: a lease takes a lost job back long before Celery would deliver it again.
_VISIBILITY_TIMEOUT_S = 6 * 3600


def queue_of(queue: str, model: str) -> str:
    """Return the queue of jobs for one model, to which only workers that have it listen; without one, `queue` itself.

    A dot ends the name of a queue in the embedded broker's files.
    """
    return f"{queue}-{model.replace('_', '__').replace('.', '_p')}" if model else queue


def celery_config(settings: Settings) -> dict[str, Any]:
    """Return the Celery configuration for both ends.

    Raises
    ------
    ConfigurationError
        The embedded broker's folder cannot be made.
    """
    config: dict[str, Any] = {
        "task_ignore_result": True,
        "result_backend": None,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": settings.broker.queue,
        "task_time_limit": settings.worker.time_limit_s,
        "task_publish_retry": False,
        "worker_prefetch_multiplier": 1,
        "worker_proc_alive_timeout": 600,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }
    url = settings.broker.url
    if url.startswith(("redis://", "rediss://")):
        verified = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(settings.broker.ca_file or "") or None}
        return config | {
            "broker_url": str(url),
            "broker_use_ssl": verified if url.startswith("rediss://") else None,
            "worker_disable_prefetch": True,
            "broker_transport_options": {
                "visibility_timeout": _VISIBILITY_TIMEOUT_S,
                "socket_timeout": 10,
                "socket_connect_timeout": 5,
                "socket_keepalive": True,
                "health_check_interval": 25,
            },
        }
    return config | {"broker_url": "filesystem://localhost", "broker_transport_options": _folder_options(settings)}


def _folder_options(settings: Settings) -> dict[str, Any]:
    folder = settings.state_dir / "broker"
    if settings.broker.url:
        folder = type(folder)(settings.broker.url.removeprefix("filesystem://"))
    queue, control = folder / "queue", folder / "control"
    try:
        for path in (queue, control):
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise ConfigurationError(
            f"the broker's folder {folder} cannot be made ({error.strerror})", "check state_dir and who owns it"
        ) from error
    return {
        "data_folder_in": str(queue),
        "data_folder_out": str(queue),
        "control_folder": str(control),
        "polling_interval": 0.2,
    }
