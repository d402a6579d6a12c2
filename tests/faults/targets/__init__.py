"""The parsers that read what others wrote, each with its examples and its rules."""

from targets.bundles import BUNDLES
from targets.documents import DOCUMENTS
from targets.gateway import GATEWAY
from targets.models import MODELS
from targets.records import RECORDS
from targets.templates import TEMPLATE

TARGETS = (*DOCUMENTS, *MODELS, *BUNDLES, *TEMPLATE, *RECORDS, *GATEWAY)
