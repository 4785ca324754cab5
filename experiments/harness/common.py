"""Names that scripts import from here until they name the module of their subject."""

from experiments.harness.files import plain as plain
from experiments.harness.files import provenance as provenance
from experiments.harness.files import write_json as write_json
from experiments.harness.files import write_text as write_text
from experiments.harness.networks import Loaded as Loaded
from experiments.harness.networks import load as load
from experiments.harness.networks import papers_network as papers_network
from experiments.harness.outcomes import FAILS as FAILS
from experiments.harness.outcomes import HOLDS as HOLDS
from experiments.harness.outcomes import IN_PART as IN_PART
from experiments.harness.outcomes import outcome as outcome
from experiments.harness.outcomes import percent as percent
from experiments.harness.populations import endings as endings
from experiments.harness.populations import flat as flat
from experiments.harness.populations import predict as predict
from experiments.harness.populations import quartiles as quartiles
from experiments.harness.populations import walks as walks
