# ruff: noqa: E501 - a table
"""One table of files as people have them: what is read of each, or the sentence that refuses it.

`pandas` and `datasets` are asked too wherever they read the same file.
"""

import bz2
import csv
import gzip
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import config
from tiers import examples
from written import (
    CAFE,
    CAFE_CSV,
    CSV,
    GIVEN,
    JSONL,
    LONG,
    PLAIN,
    ROWS,
    Case,
    N,
    classes,
    file,
    folder,
    saved,
    sheet,
    table,
    typed,
    zipped,
)

from task.data import prepared
from task.data.parts import reading_of
from task.data.prepared import DataError
from task.data.request import Reading
from task.data.sources.base import read_split
from task.data.sources.registry import open_source
from task.storage.store import Store

TABLE = [
    # ---------------------------------------------------------------- csv: cells
    Case("plain", file("r.csv", CSV), PLAIN, peer="pandas"),
    Case("quotes", file("r.csv", 'text,label\ngood film,pos\ndull,neg\n"a, very; ""odd""\tone",pos\n'), ROWS, peer="pandas"),
    Case("a huge cell", file("r.csv", f"text,label\n{LONG},pos\ndull,neg\n"), [(LONG, "pos"), ("dull", "neg")], peer="pandas"),
    Case("quoted ends of lines", file("r.csv", 'text,label\n"two\nlines",pos\n"two\r\nmore",neg\n'), [("two\nlines", "pos"), ("two\r\nmore", "neg")], peer="pandas"),
    Case("duplicates that are not used", file("r.csv", "id,id,text,label\n1,2,good film,pos\n3,4,dull,neg\n"), PLAIN, peer="pandas"),
    Case("unnamed columns", file("r.csv", ",text,label,\n0,good film,pos,\n1,dull,neg,x\n"), PLAIN, peer="pandas"),
    Case("a duplicate that is used", file("r.csv", "text,text,label\na,b,pos\nc,d,neg\n"), "column 'text' is there twice"),
    Case("windows", file("r.csv", CSV.replace("\n", "\r\n")), PLAIN, peer="pandas"),
    Case("old mac", file("r.csv", CSV.replace("\n", "\r")), PLAIN, peer="pandas"),
    Case("empty lines", file("r.csv", "\n" + CSV.replace("dull", "\n\ndull") + "\n\n  \n"), PLAIN),
    Case("no end", file("r.csv", CSV.rstrip()), PLAIN, peer="pandas"),
    Case("semicolons", file("r.csv", CSV.replace(",", ";")), PLAIN, said="a semicolon between cells"),
    Case("semicolons and decimal commas", file("r.csv", "text;score;label\ngood film;1,5;pos\ndull;2,5;neg\n"), PLAIN, said="a semicolon"),
    Case("tabs in a csv", file("r.csv", CSV.replace(",", "\t")), PLAIN, said="a tab between cells"),
    Case("bars", file("r.csv", CSV.replace(",", "|")), PLAIN, said="a bar between cells"),
    Case("another delimiter", file("r.csv", CSV.replace(",", "^")), PLAIN, options={"delimiter": "^"}),
    Case("tsv", file("r.tsv", CSV.replace(",", "\t")), PLAIN),
    Case("tsv with quotes alone", file("r.tsv", 'text\tlabel\n"good film\tpos\n5" and dull\tneg\n'), [('"good film', "pos"), ('5" and dull', "neg")], said="quotes as they stand"),
    Case("txt with tabs", file("r.txt", CSV.replace(",", "\t")), PLAIN),
    Case("spaces after commas", file("r.csv", 'text, label\n"good, film", pos\ndull, neg\n'), [("good, film", "pos"), ("dull", "neg")]),
    Case("backslashes", file("r.csv", 'text,label\n"a \\"good\\" film",pos\ndull,neg\n'), [('a "good" film', "pos"), ("dull", "neg")]),
    Case("a quote that does not end", file("r.csv", 'text,label\ngood,pos\n"dull,neg\n'), "line 3: quotes do not end"),
    Case("a bare comma", file("r.csv", "text,label\ngood, film,pos\ndull,neg\n"), r"row 0 \(line 2\) has 3 cells, where the first line names 2 columns"),
    Case("a bare comma at last", file("r.csv", "text,label\ngood,pos\nfine,neg\ndull, dark,neg\n"), r"row 2 \(line 4\) has 3 cells"),
    Case("a row too short", file("r.csv", "text,label\ngood,pos\ndull\n"), r"row 1 \(line 3\) has 1 cells"),
    Case("short where it is not used", file("r.csv", "text,label,note\ngood film,pos,x\ndull,neg\n"), PLAIN, peer="pandas"),
    Case("cells after the last", file("r.csv", "text,label\ngood film,pos,\ndull,neg,,\n"), PLAIN),
    Case("words that pandas takes for missing", file("r.csv", "text,label\nNone,NA\nnull,US\nnan,NA\n"), [("None", "NA"), ("null", "US"), ("nan", "NA")]),
    Case("a header alone", file("r.csv", "text,label\n"), "has no rows"),
    Case("nothing", file("r.csv", ""), "has no column 'text', only none"),
    Case("zero bytes", file("r.csv", "text,label\ngo\0od,pos\ndull,neg\n"), [("go\0od", "pos"), ("dull", "neg")]),
    Case("no names", file("r.csv", '"3","Wall St","x"\n"4","b","y"\n'), "has no column 'text', only '3', 'Wall St', 'x' .*; its first line names the columns"),
    Case("names again", file("r.csv", CSV + CSV), r"row 2 \(line 4\): a row repeats the names of columns"),
    Case("a workbook called csv", lambda place: sheet([["text", "label"], ["a", "x"]])(place).rename(place / "r.csv"), "it is no text"),
    # ---------------------------------------------------------------- csv: encodings
    Case("utf-8 with a mark", file("r.csv", CAFE_CSV, "utf-8-sig"), CAFE, peer="pandas"),
    Case("windows-1252", file("r.csv", CAFE_CSV, "cp1252"), CAFE, said="line 2 is not UTF-8: the file is read as Windows-1252"),
    Case("one byte of latin-1 at last", file("r.csv", "text,label\ngood,pos\ndull,neg\ncafé,neg\n", "latin-1"), [("good", "pos"), ("dull", "neg"), ("café", "neg")], said="line 4"),
    Case("utf-16", file("r.csv", CAFE_CSV, "utf-16"), CAFE, said="UTF-16"),
    Case("utf-16 without a mark", file("r.csv", CAFE_CSV, "utf-16-le"), "utf-16-le"),
    Case("utf-16 that is named", file("r.csv", CAFE_CSV, "utf-16-le"), CAFE, options={"encoding": "utf-16-le"}),
    Case("cyrillic", file("r.csv", "text,label\nхороший фильм,pos\nскучно,neg\n", "cp1251"), "line 2: the file is not UTF-8, or not all of it; save it as UTF-8, or name its encoding"),
    Case("cyrillic that is named", file("r.csv", "text,label\nхороший фильм,pos\nскучно,neg\n", "cp1251"), [("хороший фильм", "pos"), ("скучно", "neg")], options={"encoding": "cp1251"}),
    Case("chinese", file("r.csv", "text,label\n好电影,pos\n无聊,neg\n", "gb18030"), "not UTF-8"),
    Case("japanese", file("r.csv", "text,label\nよい映画,pos\nたいくつ,neg\n", "shift_jis"), "not UTF-8"),
    Case("mixed", file("r.csv", "text,label\ncafé,pos\n".encode() + "été,neg\n".encode("latin-1")), "line 3: the file is not UTF-8, or not all of it"),
    Case("the wrong name", file("r.csv", CAFE_CSV, "cp1252"), "line 2 is not in the encoding utf-8", options={"encoding": "utf-8"}),
    # ---------------------------------------------------------------- packed
    Case("gz", file("r.csv.gz", gzip.compress(CSV.encode())), PLAIN, peer="pandas"),
    Case("bz2", file("r.csv.bz2", bz2.compress(CSV.encode())), PLAIN, peer="pandas"),
    Case("xz", file("r.jsonl.xz", lzma.compress(JSONL.encode())), PLAIN),
    Case("zst", file("r.jsonl.zst", pa.compress(JSONL.encode(), "zstd", asbytes=True)), PLAIN),
    Case("zip", zipped({"rows.csv": CSV, "__MACOSX/._rows.csv": "x"}), PLAIN),
    Case("zip of two", zipped({"a.csv": CSV, "b.csv": CSV}), "unpack others into a folder"),
    Case("gz that is none", file("r.csv.gz", CSV), "the file cannot be unpacked"),
    Case("gz cut off", file("r.csv.gz", gzip.compress(CSV.encode())[:-9]), "the file cannot be unpacked"),
    # ---------------------------------------------------------------- json
    Case("jsonl", file("r.jsonl", JSONL), PLAIN, peer="datasets"),
    Case("ndjson", file("r.ndjson", JSONL), PLAIN),
    Case("json of lines", file("r.json", JSONL), PLAIN, peer="datasets"),
    Case("jsonl of a list", file("r.jsonl", "[" + JSONL.strip().replace("\n", ",\n") + "]"), PLAIN),
    Case("a list on many lines", file("r.json", json.dumps([dict(zip(("text", "label"), row)) for row in PLAIN], indent=2)), PLAIN, peer="datasets"),
    Case("nested", file("r.json", json.dumps({"version": 1, "data": [dict(zip(("text", "label"), row)) for row in PLAIN]})), PLAIN, said="its list 'data'"),
    Case("several lists", file("r.json", json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}]})), "several lists of rows"),
    Case("lists by column", file("r.json", json.dumps({"text": ["good film", "dull"], "label": ["pos", "neg"]})), PLAIN, said="column by column"),
    Case("pandas by column", file("r.json", json.dumps({"text": {"0": "good film", "1": "dull"}, "label": {"0": "pos", "1": "neg"}})), PLAIN, said="column by column", peer="json"),
    Case("half a character", file("r.jsonl", JSONL.replace("dull", "dull \\ud83d")), [("good film", "pos"), ("dull \ufffd", "neg")], said="half of a character"),
    Case("an unused mixture", file("r.jsonl", '{"text": "good film", "label": "pos", "x": 1}\n{"text": "dull", "label": "neg", "x": [{"a": "b"}]}\n'), PLAIN),
    Case("an unused huge number", file("r.jsonl", '{"text": "good film", "label": "pos", "x": 1e999}\n{"text": "dull", "label": "neg", "x": ' + "9" * 40 + "}\n"), PLAIN),
    Case("a used mixture", file("r.jsonl", '{"text": "good film", "label": "pos"}\n{"text": 5, "label": "neg"}\n'), r"row 1 \(line 2\), column 'text': holds 5, but those before have str"),
    Case("NaN", file("r.jsonl", '{"text": NaN, "label": "pos"}\n' + JSONL), PLAIN, said="1 of 3 rows have no text"),
    Case("a number of 80 bits", file("r.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": ' + "9" * 25 + "}\n"), r"row 1 \(line 2\), column 'label': a whole number of more than 64 bits"),
    Case("deep json", file("r.json", "[" * 100_000), "is not a json file: RecursionError"),
    Case("json in latin-1", file("r.jsonl", '{"text": "café", "label": "pos"}\n{"text": "b", "label": "neg"}\n', "latin-1"), [("café", "pos"), ("b", "neg")], said="Windows-1252"),
    Case("a broken line", file("r.jsonl", JSONL + '{"text": \n'), "line 3 is not json"),
    Case("a list of lists", file("r.json", '[["good", "pos"]]'), "row 0: not an object"),
    Case("split by pandas", file("r.json", '{"columns": ["text", "label"], "index": [0], "data": [["a", "b"]]}'), "has no list of rows; rows are one object a line"),
    Case("json cut off", file("r.json", json.dumps([{"text": "a", "label": "b"}], indent=1)[:-3]), "not a json file of one object a line"),
    # ---------------------------------------------------------------- arrow
    Case("parquet", table("r.parquet", {"text": ["good film", "dull"], "label": ["pos", "neg"]}), PLAIN, peer="datasets"),
    Case("feather", table("r.feather", {"text": ["good film", "dull"], "label": ["pos", "neg"]}), PLAIN),
    Case("arrow", table("r.arrow", {"text": ["good film", "dull"], "label": ["pos", "neg"]}), PLAIN, peer="datasets"),
    Case("categories of pandas", table("r.parquet", {"text": pa.array(["good film", "dull"], pa.large_string()), "label": pa.array(["pos", "neg"]).dictionary_encode()}), PLAIN),
    Case("views of strings", table("r.parquet", {"text": pa.array(["good film", "dull"], pa.string_view()), "label": ["pos", "neg"]}), PLAIN),
    Case("unused types", table("r.parquet", {"text": ["good film", "dull"], "label": ["pos", "neg"], "x": pa.array([1, 2], pa.duration("s")), "y": pa.array([[1], []]), "z": pa.array([1, 2], pa.date32())}), PLAIN),
    Case("decimals", table("r.parquet", {"text": ["a", "b"], "label": pa.array([1, 2]).cast(pa.decimal128(21, 0))}), [("a", "1"), ("b", "2")]),
    Case("bytes", table("r.parquet", {"text": [b"a", b"b"], "label": ["x", "y"]}), "row 0, column 'text': no text"),
    Case("dates as labels", table("r.parquet", {"text": ["a", "b"], "label": pa.array([1, 2], pa.date32())}), "a label is a whole number or text"),
    # ---------------------------------------------------------------- sheets and what is not read
    Case("xlsx", sheet([["text", "label"], ["good film", "pos"], ["dull", "neg"], [None, None]], second=True), PLAIN, said="2 sheets; the first one is read"),
    Case("xlsx with a number", sheet([["text", "label"], ["good film", "pos"], [2019, "neg"]]), r"row 1 \(line 3\), column 'text': holds 2019"),
    Case("xls", file("r.xls", b"\xd0\xcf\x11\xe0"), "save it as .xlsx or .csv"),
    Case("pickle", file("r.pkl", b"\x80\x04N."), "a pickle can run code and is never read"),
    Case("tar", file("r.tar", b""), "unpack it into a folder"),
    # ---------------------------------------------------------------- missing and empty
    Case("an empty text", file("r.csv", "text,label\ngood film,pos\n,neg\ndull,neg\n"), PLAIN, said="1 of 3 rows have no text in 'text' and are left out (data.skip-empty): rows 1"),
    Case("nothing to see", file("r.jsonl", JSONL + '{"text": "\\u200b \\n", "label": "neg"}\n{"text": null, "label": null}\n'), PLAIN, said="2 of 4 rows"),
    Case("an empty text that is not left out", file("r.csv", "text,label\ngood film,pos\n,neg\n"), r"row 1 \(line 3\), column 'text': the text is empty", options={"skip_empty": False}),
    Case("only empty texts", file("r.csv", "text,label\n,pos\n ,neg\n"), "no row has a text in 'text'"),
    Case("a missing label", file("r.csv", "text,label\ngood film,pos\ndull,\n"), r"row 1 \(line 3\), column 'label': the label is missing"),
    Case("a missing number", file("r.csv", "text,label\na,0\nb,NA\nc,1\n"), r"row 1 \(line 3\), column 'label': the label is missing"),
    Case("numbers as text", file("r.csv", "text,label\n17,a\n18,b\n"), r"row 0 \(line 2\), column 'text': no text, but 17"),
    # ---------------------------------------------------------------- columns
    Case("sentence", file("r.csv", "sentence,label\na,x\nb,y\n"), r"has no column 'text', only 'sentence', 'label'; did you mean 'sentence'\? \(set data.text-column = 'sentence'\)"),
    Case("sentence and target", file("r.csv", "sentence,target\na,x\nb,y\n"), r"did you mean 'sentence'\? \(set data.text-column = 'sentence'\)"),
    Case("labels", file("r.csv", "text,labels\na,x\nb,y\n"), r"set data.label-column = 'labels'"),
    Case("upper case", file("r.csv", "Text,LABEL\na,x\nb,y\n"), r"did you mean 'Text'\? \(set data.text-column = 'Text'\)"),
    Case("several that it may be", file("r.csv", "review,content,label\na,b,x\n"), r"has no column 'text', only 'review', 'content', 'label'"),
    # ---------------------------------------------------------------- labels: names decide
    Case("classes in another order", typed("r.parquet", ["dog", "cat"], [0, 1]), [(N, "dog"), ("row 1", "cat")], GIVEN),
    Case("a class that no one knows", typed("r.parquet", ["ant", "cat"], [1, 0]), "row 1, column 'label': the class name of the column's type is none of cat, dog: 'ant'", GIVEN),
    Case("a class that no row has", typed("r.parquet", ["ant", "cat", "dog"], [1, 2]), [(N, "cat"), ("row 1", "dog")], GIVEN),
    Case("a class without a name", typed("r.parquet", ["cat", "dog"], [0, -1]), "row 1, column 'label': the label is missing", GIVEN),
    Case("classes called by numbers", typed("r.parquet", ["0", "1"], [1, 0]), [(N, "dog"), ("row 1", "cat")], GIVEN, said="numbers are read as positions among the labels: 0 is 'cat', 1 is 'dog'"),
    Case("positions", file("r.csv", "text,label\na,1\nb,0\n"), [("a", "dog"), ("b", "cat")], GIVEN, said="0 is 'cat'"),
    Case("positions as text", file("r.json", '[{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]'), [("a", "dog"), ("b", "cat")], GIVEN, said="0 is 'cat'"),
    Case("positions as fractions", file("r.csv", "text,label\na,1.0\nb,0.0\n"), [("a", "dog"), ("b", "cat")], GIVEN, said="0 is 'cat'"),
    Case("from 1", file("r.csv", "text,label\na,1\nb,2\n"), "none of cat, dog: 1; 0 is not among these numbers, so they may count from 1", GIVEN),
    Case("from 1 and in range", file("r.csv", "text,label\na,1\nb,2\n"), "so they may count from 1: write the names", ("cat", "dog", "eel")),
    Case("beyond", file("r.csv", "text,label\na,0\nb,2\n"), "as positions numbers go from 0 to 1", GIVEN),
    Case("minus one", file("r.csv", "text,label\na,-1\nb,1\n"), "as positions numbers go from 0 to 1", GIVEN),
    Case("names and numbers", file("r.csv", "text,label\na,cat\nb,1\n"), r"row 1 \(line 3\), column 'label': the label is none of cat, dog: '1'", GIVEN),
    Case("names that are numbers", file("r.csv", "text,label\na,2\nb,1\n"), [("a", "2"), ("b", "1")], ("1", "2")),
    Case("a number that is no name", file("r.csv", "text,label\na,0\nb,1\n"), r"row 0 \(line 2\), column 'label': the label is none of 1, 2: 0", ("1", "2")),
    Case("names with a point", file("r.csv", "text,label\na,0.0\nb,1.0\n"), [("a", "0.0"), ("b", "1.0")], ("1.0", "0.0")),
    Case("names with zeros in front", file("r.csv", "text,label\na,2\nb,01\n"), [("a", "02"), ("b", "01")], ("01", "02")),
    Case("a number that two names are", file("r.csv", "text,label\na,1\nb,2\n"), "the label is none of 01, 1.0, 2: 1", ("01", "1.0", "2")),
    Case("numbers with gaps between", file("r.csv", "text,label\na,1\nb,0\n"), "the label is none of 0.5, 1.5: 1", ("0.5", "1.5")),
    Case("numbers in order", file("r.csv", "text,label\na,10\nb,9\nc,10\n"), [("a", "10"), ("b", "9"), ("c", "10")]),
    Case("true and false", file("r.csv", "text,label\na,True\nb,False\n"), [("a", "true"), ("b", "false")]),
    Case("true among names", table("r.parquet", {"text": ["a", "b"], "label": [True, False]}), [("a", "True"), ("b", "False")], ("False", "True")),
    Case("true is no position", table("r.parquet", {"text": ["a", "b"], "label": [True, False]}), "none of cat, dog: 'true'", GIVEN),
    Case("another case", file("r.csv", "text,label\na,Dog\nb,cat\n"), "'dog' differs in case, spaces or the form of accents only", GIVEN),
    Case("another form of accents", file("r.csv", "text,label\na,cafe\u0301\nb,cat\n"), "'caf\u00e9' differs in case, spaces or the form of accents only", ("cat", "café")),
    Case("labels that look the same", file("r.csv", "text,label\na,cafe\u0301\nb,caf\u00e9\n"), [("a", "cafe\u0301"), ("b", "café")], said="differ in case, spaces or the form of accents only"),
    Case("a misprint", file("r.csv", "text,label\na,dogg\nb,cat\n"), "did you mean 'dog'", GIVEN),
    Case("spaces around", file("r.csv", "text,label\na, dog \nb,cat\n"), [("a", "dog"), ("b", "cat")], GIVEN),
    Case("halves", file("r.csv", "text,label\na,0.5\nb,1.5\n"), "a label is a whole number or text", GIVEN),
    # ---------------------------------------------------------------- folders
    Case("saved", saved(classes(["cat", "dog"], [1, 0])), [(N, "dog"), ("row 1", "cat")], peer="saved"),
    Case("saved in another order", saved(classes(["dog", "cat"], [1, 0])), [(N, "cat"), ("row 1", "dog")], GIVEN),
    Case("saved with splits", saved(datasets.DatasetDict(train=classes(["cat", "dog"], [1, 0]), test=classes(["cat", "dog"], [0]))), [(N, "dog"), ("row 1", "cat")]),
    Case("saved as numpy", saved(classes(["cat", "dog"], [1, 0]).with_format("numpy")), [(N, "dog"), ("row 1", "cat")]),
    Case("shards", folder(table("train-00000-of-00002.parquet", {"text": ["good film"], "label": ["pos"]}), table("train-00001-of-00002.parquet", {"text": ["dull"], "label": ["neg"]})), PLAIN, peer="datasets"),
    Case("shards in data", folder(table("data/train-00000-of-00001.parquet", {"text": ["good film", "dull"], "label": ["pos", "neg"]}), file("README.md", "# rows\n")), PLAIN, peer="datasets"),
    Case("shards with other classes", folder(typed("train-00000-of-00002.parquet", ["cat", "dog"], [1]), typed("train-00001-of-00002.parquet", ["dog", "cat"], [1])), [(N, "dog"), (N, "cat")], GIVEN),
    Case("a shard that is missing", folder(table("train-00000-of-00002.parquet", {"text": ["a"], "label": ["b"]})), "shards of a split are missing"),
    Case("two files of a split", folder(file("train.csv", CSV), table("train.parquet", {"text": ["old"], "label": ["pos"]})), r"several files are of one split, 'train': train\.csv, train\.parquet; keep one"),
    Case("two files of a split that is not used", folder(file("train.csv", CSV), file("test.csv", CSV), file("test.jsonl", JSONL)), PLAIN),
    Case("hidden files", folder(file("train.csv", CSV), file("._train.csv", b"\0\5\x16\7"), file(".DS_Store", b"\0"), file("Thumbs.db", b"x"), file("~$train.xlsx", b"x")), PLAIN),
    Case("an upper case split", folder(file("TRAIN.CSV", CSV), file("Test.csv", CSV)), PLAIN),
    Case("one file of any name", folder(file("letters.csv", CSV), file("LICENSE.txt", "mine")), PLAIN, peer="datasets"),
    Case("parts", folder(file("part-0.csv", CSV), file("part-1.csv", "text,label\nb,neg\n")), [*PLAIN, ("b", "neg")], said="all 2 files are read as the split 'train'", peer="datasets"),
    Case("splits in longer names", folder(file("news_train.csv", CSV), file("news_test.csv", "text,label\nb,neg\n")), PLAIN, said="'train' is news_train.csv", peer="datasets"),
    Case("a cache of datasets", folder(table("ag-train.arrow", {"text": ["good film", "dull"], "label": ["pos", "neg"]}), table("ag-test.arrow", {"text": ["b"], "label": ["neg"]}), file("dataset_info.json", "{}")), PLAIN, said="'train' is ag-train.arrow"),
    Case("splits in names with numbers", folder(file("train1.csv", CSV), file("test1.csv", "text,label\nb,neg\n")), PLAIN, said="'train' is train1.csv"),
    Case("splits within words", folder(file("TrainRows.csv", CSV), file("TestRows.csv", CSV)), "has no split 'train', only 'TestRows', 'TrainRows'"),
    Case("splits in some names", folder(file("news_train.csv", CSV), file("more.csv", CSV)), "has no split 'train', only 'more', 'news_train'"),
    Case("classes that no row has", typed("r.parquet", ["cat", "dog"], [-1, -1, None]), "no row has a label; name another split"),
    Case("a bad row of a part", folder(file("part-0.csv", CSV), file("part-1.csv", "text,label\nb,\n")), r"part-1\.csv, row 0 \(line 2\), column 'label': the label is missing"),
    Case("parts of other columns", folder(file("part-0.csv", CSV), file("part-1.csv", "text\nb\n")), r"part-1\.csv has no column 'label'"),
    Case("folders by split", folder(file("train/0.jsonl", JSONL), file("test/0.jsonl", JSONL)), PLAIN, peer="datasets"),
    Case("no split to train on", folder(file("letters.csv", CSV), file("test.csv", CSV)), "has no split 'train', only 'letters', 'test'"),
    Case("an empty folder", folder(file("notes.md", "none")), "cannot be read as data"),
]  # fmt: skip


def read(path: Path, case: Case, store: Store) -> tuple[list[tuple[Any, str]], tuple[str, ...]]:
    """Texts and names of labels as they would go into training, and the notices."""
    task = config("text", name="given", **case.options)
    plan = prepared.index_file(task, store, path, case.labels)
    source = open_source(str(path))
    raw = read_split(source, plan.train.split, reading_of(task, ids=False))
    texts = raw.values("text", plan.train.rows)
    return list(zip(texts, (plan.labels[code] for code in plan.train.labels), strict=True)), plan.notices


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_a_file_is_read_or_refused_in_a_sentence(case: Case, store: Store, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = case.write(tmp_path / "in")
    if isinstance(case.expected, str):
        with pytest.raises(DataError, match=case.expected) as error:
            read(path, case, store)
        assert "Traceback" not in str(error.value)
        return
    rows, notices = read(path, case, store)
    assert rows == case.expected
    assert case.said in " ".join(notices) if case.said else not notices
    if case.peer:
        assert [text for text, _ in case.expected] == PEERS[case.peer](path)


def by_datasets(path: Path) -> list[str]:
    """What `load_dataset` reads, in a cache of this test's own."""
    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
    cache = str(path.parent / "cache")
    if path.is_dir():
        return list(datasets.load_dataset(str(path), split="train", cache_dir=cache)["text"])
    return list(datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train", cache_dir=cache)["text"])


PEERS: dict[str, Callable[[Path], list[str]]] = {
    "pandas": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False)["text"].tolist(),
    "json": lambda path: pd.read_json(path)["text"].tolist(),
    "saved": lambda path: list(datasets.load_from_disk(str(path))["text"]),
    "datasets": by_datasets,
}


# ---------------------------------------------------------------------- memory
def test_columns_that_are_not_needed_are_not_kept(store: Store, tmp_path: Path) -> None:
    """100 MB of notes beside the texts."""
    path = tmp_path / "wide.csv"
    with path.open("w") as rows:
        rows.write("text,note,label\n")
        rows.writelines(f"row {number},{'x' * 100_000},{number % 2}\n" for number in range(1000))
    before = pa.total_allocated_bytes()
    raw = read_split(open_source(str(path)), "train", reading_of(config("text", name="given")))
    assert raw.dataset.column_names == ["text", "label"]
    assert pa.total_allocated_bytes() - before < 2**20
    assert raw.where(999) == f"{path}, row 999 (line 1001)"


def test_there_are_enough_of_them() -> None:
    read_ones = sum(not isinstance(case.expected, str) for case in TABLE)
    print(f"{len(TABLE)} files: {read_ones} read, the others refused in a sentence")
    assert len(TABLE) >= 120


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["NA", "None", "1", "2.5", '"', '""', "a,b;c\td|e", "\n", "\r\n", "\r", "\\", '\\"', " x ", "'", "#", "é"]
)


@examples(150, derandomize=True, database=None, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS, st.sampled_from(["pos", "neg"])), min_size=2, max_size=8),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_pandas_writes_is_read_as_pandas_reads_it(
    rows: list[tuple[str, str, str]], between: str, end: str, quoting: int, encoding: str
) -> None:
    """Cells of all signs, with every delimiter, end of lines and encoding. Of a return alone pandas makes two lines."""
    rows = [(text.replace("\r", "\r\n"), note.replace("\r", "\r\n"), label) for text, note, label in rows]
    frame = pd.DataFrame([("first", "plain", "pos"), *rows], columns=["text", "note", "label"])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.csv"
        frame.to_csv(path, sep=between, lineterminator=end, quoting=quoting, encoding=encoding, index=False)
        table = open_source(str(path)).load("train", Reading(("text", "label"), {"text": "", "label": ""}))
    assert list(table.values("text")) == frame["text"].tolist()
    assert list(table.values("label")) == frame["label"].tolist()
