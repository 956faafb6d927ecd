"""Trains vocabularies: Unigram with T5's first pieces, WordPiece with BERT's."""

from __future__ import annotations

from collections.abc import Iterable

from distill_jax.io.errors import UserError


def without_surrogates(text: str) -> str:
    """Lone surrogates, which no encoding can hold, become U+FFFD; pairs are joined."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def train_spiece(
    texts: Iterable[str], vocab_size: int, max_texts: int, seed: int
) -> bytes:
    """The bytes of a Unigram ``spiece.model`` trained on the texts."""
    import io
    import itertools

    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            "training a vocabulary needs the sentencepiece library",
            "pip install sentencepiece, or give a T5 checkpoint's tokenizer",
        ) from None

    def sentences():
        for text in itertools.islice(texts, max_texts):
            # Long documents are cut in lines: the trainer skips what is too long.
            clean = without_surrogates(text).replace("\0", " ")
            for line in clean.splitlines():
                for start in range(0, len(line), 1000):
                    piece = line[start : start + 1000].strip()
                    if piece:
                        yield piece

    lines = list(sentences())
    if not lines:
        raise UserError(
            "no text to train a vocabulary on", "give a collection that has documents"
        )
    out = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=0.9995,
        input_sentence_size=500_000,
        shuffle_input_sentence=True,
        max_sentence_length=8192,
        # Sums over threads are added in thread order: a fixed count, a fixed result.
        num_threads=4,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        minloglevel=3,
    )
    return out.getvalue()


# Where bert-base-uncased has them, the markers of ColBERT included.
BERT_SPECIALS = (
    "[PAD]",
    "[unused0]",
    "[unused1]",
    *(f"[unused{number}]" for number in range(2, 10)),
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
)

# Characters of a WordPiece vocabulary, the most frequent ones.
ALPHABET = 1000


def train_wordpiece(texts: Iterable[str], vocab_size: int, max_texts: int) -> list[str]:
    """The pieces of an uncased WordPiece vocabulary, in the order of their ids.

    The same texts give the same pieces in every process: the trainer numbers characters
    in the order of a hash map and breaks ties by those numbers, so that characters are
    given to it numbered.
    """
    import itertools
    from collections import Counter

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    normalise = normalizers.BertNormalizer().normalize_str
    splitter = pre_tokenizers.BertPreTokenizer()
    backend.pre_tokenizer = splitter  # type: ignore[assignment]
    clean = [
        normalise(without_surrogates(text))
        for text in itertools.islice(texts, max_texts)
    ]
    counts: Counter[str] = Counter()
    for text in clean:
        counts.update(text)
    found = [c for c in sorted(counts, key=lambda c: (-counts[c], c)) if c.strip()]
    alphabet = sorted(found[:ALPHABET])
    if len(found) > ALPHABET:
        rare = dict.fromkeys(map(ord, found[ALPHABET:]), " ")
        clean = [text.translate(rare) for text in clean]
    # Characters that can continue a word; punctuation is always a token of its own.
    inner = [c for c in alphabet if len(splitter.pre_tokenize_str(f"a{c}")) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*BERT_SPECIALS, *alphabet, *(f"##{c}" for c in inner)],
        show_progress=False,
    )
    backend.train_from_iterator(clean, trainer)
    pieces = backend.get_vocab()
    return sorted(pieces, key=pieces.__getitem__)
