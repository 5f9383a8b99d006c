"""What people are told of a lost table of moves: by repair, and by forget, which refuses it."""

from vmbackup.cli.repair import _text
from vmbackup.engine.care.findings import TABLE, Damage
from vmbackup.engine.care.repair import RepairSummary
from vmbackup.engine.care.verify import VerifySummary


def test_its_advice_is_not_to_forget_it() -> None:
    """A point's is: they lie in one folder."""
    table = Damage("points/default/aa/bb", f"is missing: {TABLE}", (), ())
    point = Damage("points/default/aa/cc", "is missing: its index is there", ("12345678",), ())
    for damage, words, others in ((table, "never the table", "8 digits"), (point, "8 digits", "never the table")):
        found = VerifySummary(1, 1, 1, (damage,))
        text = "\n".join(_text(RepairSummary(found, (), found), dry_run=False))
        assert words in text
        assert others not in text
    assert Damage.from_json(table.to_json()).is_table
