"""Answers against references: Rouge-L, exact match, and the F1 of their words."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from statistics import fmean

from task.metrics import Metric

RATINGS: Mapping[str, Metric] = {
    "rouge-l": Metric("Rouge-L"),
    "exact-match": Metric("exact match"),
    "word-f1": Metric("word F1"),
}
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def rated(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the means of `RATINGS` over answers, each from 0 to 1. There must be at least one.

    `rouge-l` is the F-measure of the longest common subsequence of words (Lin, "ROUGE", ACL 2004, section 3), by the
    package rouge-score with its stemmer, which counts words of Latin letters without accents and digits alone.
    `exact-match` and `word-f1` are SQuAD's (Rajpurkar et al., arXiv 1606.05250, section 6.1): without case,
    punctuation and articles.
    """
    scorer = import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    pairs = list(zip(answers, references, strict=True))
    return {
        "rouge-l": fmean(float(scorer.score(reference, answer)["rougeL"].fmeasure) for answer, reference in pairs),
        "exact-match": fmean(float(plain_words(answer) == plain_words(reference)) for answer, reference in pairs),
        "word-f1": fmean(word_f1(plain_words(answer), plain_words(reference)) for answer, reference in pairs),
    }


def plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def word_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of an answer's words; 1 if both have none."""
    if not answer or not reference:
        return float(answer == reference)
    return 2 * (Counter(answer) & Counter(reference)).total() / (len(answer) + len(reference))
