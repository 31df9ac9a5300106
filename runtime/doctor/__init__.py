"""The doctor: what is wrong with this machine, its engines and our files, and what to do."""

from runtime.doctor.bundle import write_bundle
from runtime.doctor.examination import CHECKS, examine
from runtime.doctor.finding import Check, Finding, Status
from runtime.doctor.site import Site, site

__all__ = ["CHECKS", "Check", "Finding", "Site", "Status", "examine", "site", "write_bundle"]
