"""Gene sets: files with their quirks, and tables of membership."""

from __future__ import annotations

import gzip

import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.features import PerturbationFeatures, gene_set_membership, read_gmt

TEXT = "cycle\thttp://x\tCDK1\tMYC,1.0\t\r\n\nde novo, stress (GO:1)\t\tMYC\tTP53,0.5\tMYC\t\n"
SETS = {"cycle": frozenset({"CDK1", "MYC"}), "de novo, stress (GO:1)": frozenset({"MYC", "TP53"})}


def write(path, text):
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["sets.gmt", "sets.gmt.gz"])
def test_read_gmt(tmp_path, name):
    path = write(tmp_path / name, TEXT)
    assert read_gmt(path) == SETS
    assert list(read_gmt(str(path))) == list(SETS)
    assert read_gmt(write(tmp_path / name, "\ufeff" + TEXT)) == SETS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\t\tX\nb\n", r"sets.gmt, line 2: set 'b' has no genes"),
        ("a\t\tX\n\nb\tnote\t\t\n", "line 3: set 'b' has no genes"),
        ("a X Y\n", "line 1: set 'a X Y' has no genes; .* tabs between"),
        ("\tnote\tX\n", "line 1: the set has no name"),
        ("a\t\tX\nb\t\tY\na\t\tZ\n", "line 3: set 'a' comes twice"),
        ("a\t\tX,high\n", "line 1: 'X,high' is neither a gene nor"),
        ("a\t\tX,\n", "line 1: 'X,' is neither a gene nor"),
        ("a\t\t,1.0\n", "line 1: ',1.0' names no gene"),
        ("\n", "has no gene sets"),
    ],
)
def test_malformed_lines_are_named(tmp_path, text, message):
    with pytest.raises(SchemaError, match=message):
        read_gmt(write(tmp_path / "sets.gmt", text))


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08", b"a\t\t\xff\n"])
def test_what_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "sets.gmt").write_bytes(content)
    with pytest.raises(SchemaError, match=r"sets.gmt is not a text file"):
        read_gmt(tmp_path / "sets.gmt")


def test_membership():
    sets = {"one": ["A"], "two": ["A", "B"], "three": ["A", "B", "C"], "far": ["X", "Y", "Z"]}
    table = gene_set_membership(sets, ["B", "A", "B"], min_size=2, max_size=3)
    assert table.to_dict("list") == {"two": [1, 1], "three": [1, 1], "far": [0, 0]}
    assert list(table.index) == ["B", "A"]
    small = gene_set_membership(sets, ["B", "A"], min_size=2, max_size=2)
    assert list(small.columns) == ["two"]


def test_columns_do_not_depend_on_the_genes_asked_for():
    sets = {f"s{i}": [f"G{j}" for j in range(i, i + 6)] for i in range(8)}
    one, other = (gene_set_membership(sets, [gene]) for gene in ("G1", "G12"))
    assert list(one.columns) == list(other.columns) == list(sets)


def test_unknown_genes_are_named_and_missing_not_zero():
    sets = {"big": list("ABCDE"), "tiny": ["T"]}
    with pytest.warns(UserWarning, match=r"2 of 3 genes are in no set .*: 'T', 'Q'\.") as told:
        table = gene_set_membership(sets, ["A", "T", "Q"])
    assert told[0].filename == __file__, "the line that called, not one of the package"
    assert list(table.index) == ["A"]
    features = PerturbationFeatures({"gene_sets": table})
    values, mask = features.table(["A", "Q"])["gene_sets"]
    assert mask.tolist() == [True, False]
    assert values[0].tolist() == [1.0]
    many = ["A", *(f"Q{i}" for i in range(12))]
    with pytest.warns(UserWarning, match=r"12 of 13 .*'Q9' and 2 others"):
        gene_set_membership(sets, many)


def test_messages_of_membership():
    sets = {"s": list("ABCDE")}
    with pytest.raises(SchemaError, match=r"None of the 1 genes \('a'\).*\['A', 'B', 'C'\]"):
        gene_set_membership(sets, ["a"])
    with pytest.raises(SchemaError, match=r"has 6 to 500 genes \(found: 5 to 5\)"):
        gene_set_membership(sets, ["A"], min_size=6)
    with pytest.raises(SchemaError, match="no sets"):
        gene_set_membership({}, ["A"])


def test_sets_of_several_files_are_told_apart(tmp_path):
    first = write(tmp_path / "h.v7.gmt", "s\t\tA\tB\n")
    second = write(tmp_path / "go.gmt.gz", "s\t\tB\tC\n")
    both = gene_set_membership([first, second], list("ABC"), min_size=1)
    assert both.to_dict("list") == {"h.v7|s": [1, 1, 0], "go|s": [0, 1, 1]}
    assert list(gene_set_membership(first, ["A"], min_size=1)) == ["s"]
    assert list(gene_set_membership([str(first)], ["A"], min_size=1)) == ["s"]
    (tmp_path / "x").mkdir()
    third = write(tmp_path / "x" / "go.gmt", "s\t\tB\n")
    with pytest.raises(SchemaError, match="Two files have one name: 'go', 'go'"):
        gene_set_membership([second, third], ["B"])


def test_real_gene_sets(data_dir):
    folder = data_dir / "features"
    files = [folder / "hallmark_v7.0.symbols.gmt", folder / "Reactome_2016.gmt.gz"]
    if not all(path.exists() for path in files):
        pytest.skip("the gene sets are not among the real data")
    assert [len(read_gmt(path)) for path in files] == [50, 1530]
    genes = ["STAT1", "JAK2", "IFNGR1", "NOT_A_GENE"]
    with pytest.warns(UserWarning, match="'NOT_A_GENE'"):
        table = gene_set_membership(files, genes)
    interferon = "hallmark_v7.0.symbols|HALLMARK_INTERFERON_GAMMA_RESPONSE"
    assert table.loc[["STAT1", "JAK2"], interferon].tolist() == [1, 1]
