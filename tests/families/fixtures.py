"""One tiny, seeded, real model per family: the rows of docs/support.md."""

from tcompress.families import known_families

from . import (
    bert_fixtures,
    fixture_albert,
    fixture_audio_spectrogram_transformer,
    fixture_deberta_v2,
    fixture_deit,
    fixture_modernbert,
    fixture_mpnet,
    fixture_vit,
    torch_fixtures,
)
from .family_fixture import FamilyFixture

_PREPARED = (
    *bert_fixtures.FIXTURES,
    fixture_mpnet.FIXTURE,
    fixture_albert.FIXTURE,
    fixture_deberta_v2.FIXTURE,
    fixture_modernbert.FIXTURE,
    fixture_vit.FIXTURE,
    fixture_deit.FIXTURE,
    fixture_audio_spectrogram_transformer.FIXTURE,
    *torch_fixtures.FIXTURES,
)

FAMILIES: dict[str, FamilyFixture] = {
    fixture.name: fixture
    for fixture in _PREPARED
    if fixture.model_type is None or fixture.model_type in known_families()
}
"""Those that tcompress knows: a family's claims are tested from the day on that it is known."""
