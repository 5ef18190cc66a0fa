"""Which folders of this host a recovery environment shows inside, so that Odoo itself can be started there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drservice.components.odoo.starting import odoo_places
from drservice.model.estate import FilesSettings, Service


def shown_folders(service: Service) -> Mapping[str, Path]:
    """Return them with the names they get below ``/env/files``; read-only there, and they outlive the environment.

    One that is not on this host is left out: a recovery does not need it, and the check that does says so.
    """
    return {
        name: path
        for item in service.files()
        if isinstance(item, FilesSettings) and item.odoo is not None
        for name, path in odoo_places(item.name, item.odoo, item.addons).shown.items()
        if path.is_dir()
    }
