"""The names that recipes have: what each means, and which values it takes.

``--gin_file=RECIPE.gin --help`` prints those of one recipe, ``docs/reference.md`` all.
A name of a recipe without a line here fails a test.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Name:
    """One name of recipes.

    Attributes:
        meaning: one sentence.
        values: what may be written after ``--gin.NAME=``.
    """

    meaning: str
    values: str


_MODEL = (
    "a MODEL_DIR, a Hugging Face, sentence-transformers or PyLate folder, "
    "hf:NAME[@REVISION], package:MODULE/PATH"
)
_COUNT = "a whole number from 1"
_SHARE = "a number from 0 to 1"

GROUPS: Mapping[str, Mapping[str, Name]] = {
    "Where": {
        "MODEL_DIR": Name("Folder that everything of the job is written to.", "a path"),
        "COLLECTION": Name(
            "Documents, queries and judgements.",
            "beir:PATH, msmarco:PATH, irds:NAME, pydocs[:PACKAGES], files:DIR, "
            "csv:PATH, jsonl:PATH, parquet:PATH",
        ),
        "COLLECTIONS": Name(
            "Collections that one student learns from; tables.gin: those of a table.",
            "a list of what COLLECTION takes; tables.gin: also qrels:FILE, dl, beir, "
            "cqadupstack, lotte, tirex",
        ),
        "BUDGET": Name(
            "Bytes of the index and time of a query: the best within it is named.",
            "'50 MB, 5 ms', one of the two, None",
        ),
        "RATES": Name(
            "How often a batch is of which of COLLECTIONS; () is by numbers of lists.",
            "a list of numbers, one a collection",
        ),
        "MIXING_TEMPERATURE": Name(
            "Flattens rates by numbers of lists: 1 keeps them, large is all alike.",
            "a number above 0",
        ),
        "SEED": Name("Seed of everything that is drawn at random.", "a whole number"),
        "MESH": Name(
            "Devices by axis; None puts all of them on the data axis.",
            "data=N,fsdp=N,model=N",
        ),
        "ENGINE": Name(
            "What reads, tokenises, counts (BM25), crops and compares documents: the "
            "job itself, or Ray's workers (on RAY_ADDRESS, else on this machine).",
            "local, ray",
        ),
        "EXPORT": Name(
            "Format of MODEL_DIR/export, read back and compared before it is kept.",
            "auto, None, sentence_transformers, transformers, pylate, t5x",
        ),
        "EXPORT_DIR": Name("Folder that the export is written to.", "a path"),
        "FORMAT": Name("Format of the export; None is the model's own.", "as EXPORT"),
        "EXPORT_DTYPE": Name(
            "Of the exported weights on disk.", "float32, bfloat16, float16"
        ),
        "STREAM": Name(
            "What feeds training lists to the trainer: SeqIO reads a task by its name.",
            "arrays, seqio, seqio:NAME",
        ),
        "MAY_CHANGE": Name(
            "Settings that may differ from those of the training in MODEL_DIR.",
            "a list of names",
        ),
        "OVERLAY": Name(
            "Marks a gin file that extends several recipes.", "True or False"
        ),
        "GRID": Name(
            "Rows of a table: what each changes of the recipe; products of axes.",
            "({'ROW': {'NAME': what --gin.NAME= takes}}, ...)",
        ),
        "ROWS": Name("Rows of GRID to compute; None is all.", "a list of names, None"),
        "MODEL_DIRS": Name("Folders of finished jobs to compare.", "a list of paths"),
    },
    "Queries and splits": {
        "SPLIT": Name("Split whose queries are used.", "train, dev, test, ..."),
        "TEST_SPLIT": Name("Split that is measured.", "test, dev, ..."),
        "DEV_SHARE": Name("Share of training queries held out as dev.", _SHARE),
        "MAX_QUERIES": Name("At most this many queries.", f"{_COUNT}, None"),
        "MAX_TRAIN_QUERIES": Name(
            "At most this many training queries.", f"{_COUNT}, None"
        ),
        "MAX_TEST_QUERIES": Name("At most this many test queries.", f"{_COUNT}, None"),
        "QUERIES": Name(
            "Queries generated or used; evaluate.gin: questions with answers.",
            f"{_COUNT}, None; jsonl:PATH, tfds:NAME",
        ),
        "QUERIES_FROM": Name("Where training queries come from.", "@queries.NAME()"),
        "TRAIN_QUERIES": Name(
            "Training queries; None is the collection's own.",
            "queries:PATH, jsonl:PATH, tfds:NAME, or as COLLECTION; None",
        ),
        "MAKERS": Name(
            "What makes queries from documents.",
            "(@queries.Cropped(), @queries.Generated(), @queries.Written())",
        ),
        "GENERATOR": Name("T5 that writes queries; None leaves it out.", _MODEL),
        "SAMPLES": Name("Queries written for a document.", _COUNT),
        "SAMPLE_TOP_K": Name("Tokens that sampling chooses from.", _COUNT),
        "SAMPLE_TEMPERATURE": Name("Temperature of sampling.", "a number above 0"),
        "CROPPED": Name("How many sentences become queries.", _COUNT),
        "ROUND_TRIP_DEPTH": Name(
            "A generated query is kept if its document is in this many first results.",
            _COUNT,
        ),
        "ROUND_TRIP": Name(
            "The search that must find a generated query's document; None keeps all.",
            "@candidates.NAME(), None",
        ),
        "ANSWERS": Name(
            "Questions by where an answer stands: among the first documents but not at "
            "the top, at the top, not among them.",
            "following, first, none, any",
        ),
        "TITLES": Name("Reads titles before texts.", "True, False"),
        "UNSEEN": Name("Documents, unseen in training, that get a query.", _COUNT),
        "PER_QUERY": Name("Positives used of each query.", f"{_COUNT}, None"),
        "WITHOUT_OWN": Name(
            "Leaves out the document whose id is the query's own.", "True, False"
        ),
    },
    "Candidates": {
        "TOP_K": Name("Documents kept in a ranking, or reordered.", _COUNT),
        "DUO_DEPTH": Name(
            "Documents of a list that a pairwise reranker compares, all pairs; the "
            "others keep their places below.",
            _COUNT,
        ),
        "DEPTH": Name("Documents that each source of candidates gives.", _COUNT),
        "POOL": Name("Documents kept of the fused sources.", _COUNT),
        "SOURCE": Name("Where candidates come from.", "@candidates.NAME()"),
        "FIRST_STAGE": Name(
            "What rerankers reorder; None is BM25.", "@candidates.NAME(), None"
        ),
        "FIRST_STAGES": Name(
            "What rerankers reorder, each.", "(@candidates.NAME(), ...)"
        ),
        "SECOND_STAGE": Name(
            "Another first stage that the student is measured over too.",
            "@candidates.NAME(), None",
        ),
        "CANDIDATES": Name(
            "Where a stage's candidates come from.", "@candidates.NAME()"
        ),
        "FIRST": Name("Retriever that finds the first lists.", _MODEL),
        "DENSE_QUERY": Name(
            "Its query encoder, where that is apart.", f"{_MODEL}, None"
        ),
        "USED": Name(
            "Numbers of the sources whose queries are taken; None is all.",
            "(0, 2, 3), None",
        ),
        "COMPARED": Name("Queries that ask all sources, for a table.", "from 0"),
        "NEGATIVES_FROM": Name(
            "Where hard negatives come from.", "@negatives/candidates.NAME()"
        ),
        "NEGATIVES_DEPTH": Name("Ranks that negatives are drawn from.", _COUNT),
        "DRAWS": Name("Lists of a positive, each with new negatives.", _COUNT),
        "INDEX": Name("How vectors are searched.", "exact, scann, auto"),
        "DENSE": Name("Dense retriever among the sources.", _MODEL),
        "DENSE_DOC_LENGTH": Name("Tokens that it reads of a document.", _COUNT),
        "SPARSE": Name("Sparse retriever (SPLADE) among the sources.", _MODEL),
        "NEGATIVES": Name(
            "Ranks that hard negatives are drawn from.", "(first, last), from 0"
        ),
        "FILTERS": Name("What removes candidates.", "(@candidates.NAME(), ...)"),
        "RUN": Name("A ranking as a TREC run file.", "a path"),
        "RUNS": Name("Several of them.", "a list of paths"),
    },
    "Student": {
        "INITIAL_CHECKPOINT": Name(
            "Where training starts; None is random weights.", f"{_MODEL}, None"
        ),
        "STUDENTS": Name(
            "Students that are trained; None is all.",
            "a list of reranker, dense, colbert, splade; None",
        ),
        "START": Name("Where students of some rows of GRID start.", f"{_MODEL}, None"),
        "RERANKER_START": Name("Where the reranker starts.", f"{_MODEL}, None"),
        "DENSE_START": Name("Where the dual encoder starts.", f"{_MODEL}, None"),
        "COLBERT_START": Name("Where the ColBERT starts.", f"{_MODEL}, None"),
        "SPLADE_START": Name("Where the SPLADE starts.", f"{_MODEL}, None"),
        "CHECKPOINT": Name("The model.", _MODEL),
        "QUERY_CHECKPOINT": Name(
            "Query tower, where it is a model of its own; None is CHECKPOINT.",
            f"{_MODEL}, None",
        ),
        "POOLING": Name("Pooling of a plain encoder folder.", "mean, cls, last, None"),
        "SIMILARITY": Name("Similarity of its vectors.", "dot, cosine, None"),
        "NORMALISE": Name("Scales its vectors to length 1.", "True, False, None"),
        "QUERY_PREFIX": Name("Text before each query.", "a text, None"),
        "DOC_PREFIX": Name("Text before each document.", "a text, None"),
        "CHECKPOINTS": Name("Several models.", "a list of what CHECKPOINT takes"),
        "KIND": Name(
            "What the student is.",
            "reranker, duo, dual_encoder, colbert, splade, generator",
        ),
        "BACKBONE": Name(
            "Sizes of a student of random weights.", "t5:tiny, t5:mini, bert:tiny, ..."
        ),
        "HEAD": Name("How a T5 reranker scores.", "difference, rankt5"),
        "STUDENT": Name("Model that searches for candidates.", "@students.Student()"),
        "STUDENT_OPTIONS": Name("Fields of the student's spec.", "a dict"),
        "VOCABULARY": Name("Tokenizer of a student of random weights.", "a path, None"),
        "VOCABULARY_SIZE": Name("Size of the vocabulary that is trained.", _COUNT),
        "QUERY_LENGTH": Name("Tokens read of a query.", f"{_COUNT}, None"),
        "PASSAGES": Name(
            "Windows of a long document that are scored; the best one counts.",
            f"{_COUNT}, None",
        ),
        "DOC_LENGTH": Name("Tokens read of a document.", f"{_COUNT}, None"),
        "TRAINED_QUERY_LENGTH": Name(
            "Tokens read of a query in training.", f"{_COUNT}, None"
        ),
        "TRAINED_DOC_LENGTH": Name("Tokens read of a document in training.", _COUNT),
        "DTYPE": Name(
            "Precision of matrix products; None (auto) is bfloat16 on an accelerator.",
            "float32, bfloat16, int8 (inference only), auto, None",
        ),
        "DROPOUT": Name("Dropout; None is the checkpoint's own.", f"{_SHARE}, None"),
        "ATTENTION_DROPOUT": Name("Dropout of attention weights.", f"{_SHARE}, None"),
    },
    "Teacher": {
        "TEACHER": Name("Model whose scores are learnt.", _MODEL),
        "TEACHERS": Name(
            "Models whose mean score is learnt: TEACHER_LABELS=@teachers.Ensemble().",
            "a list of what TEACHER takes",
        ),
        "TEACHER_LABELS": Name("Where labels come from.", "@teachers.NAME()"),
        "LABELS": Name(
            "Existing labels, instead of a teacher's; None calls the teacher.",
            "a path, None",
        ),
        "TEACHER_OPTIONS": Name("Fields of the teacher's spec.", "a dict"),
        "RANKER_TEACHER": Name(
            "What orders the first stage's lists.", "@llm.if_named()"
        ),
        "LABEL_DEPTH": Name("Documents of a query that are labelled.", _COUNT),
        "LIST_DEPTH": Name(
            "First-stage ranks used for lists; None is all that is labelled.",
            f"{_COUNT}, None",
        ),
        "PAIR_CACHE": Name("Folder of judged pairs, shared by jobs.", "a path, None"),
        "LLM_CACHE": Name("File of replies, shared by jobs.", "a path, None"),
        "TEACHER_DOC_LENGTH": Name(
            "Tokens that the teacher reads of a document.", _COUNT
        ),
        "PAIR_TEACHER": Name("Model that compares two documents.", _MODEL),
        "PAIR_CHECKPOINT": Name("Model that compares two documents.", _MODEL),
        "PAIRS": Name("Pairs of documents judged for a query.", _COUNT),
        "DELTA": Name("Largest difference of ranks within a pair.", _COUNT),
        "BOTH_ORDERS": Name("Judges each pair in both orders.", "True, False"),
        "WINDOW": Name("Documents that an LLM orders in one call.", _COUNT),
        "STEP": Name("Documents that the window moves by.", _COUNT),
        "JUDGE": Name(
            "How the endpoint labels documents.",
            "@llm.Listwise(), @judges.Pointwise(), @strengths.BradleyTerry(), "
            "@judges.Reranker()",
        ),
        "PROMPT": Name("Prompt file of the LLM.", "a shipped name or a path"),
        "LLM_BASE_URL": Name(
            "OpenAI-compatible endpoint; the key is read from OPENAI_API_KEY.",
            "a URL; local for a model of files",
        ),
        "LLM_MODEL": Name(
            "Model that the endpoint serves; of local, a ...ForCausalLM or a T5.",
            f"its name; {_MODEL}",
        ),
        "LLM_BUDGET_CALLS": Name("Maximum number of calls, over all runs.", _COUNT),
        "LLM_BUDGET_MONEY": Name(
            "Most money that may be spent, in the unit of the prices.", "above 0, None"
        ),
        "LLM_PRICE_IN": Name("Price of a million tokens read.", "from 0, None"),
        "LLM_PRICE_OUT": Name("Price of a million tokens written.", "from 0, None"),
        "LLM_TOKENS_FIELD": Name(
            "Field of a request that limits the tokens of a reply.",
            "max_tokens, max_completion_tokens",
        ),
        "LLM_OMIT": Name("Fields that requests leave out.", "a list of names"),
        "TEMPERATURE": Name("Temperature of the LLM.", "a number from 0"),
        "READ": Name("Documents that an LLM reads to answer.", _COUNT),
        "TEACHER_ORDER": Name(
            "What finds the documents and orders them for the student.", "@SOURCE()"
        ),
        "FEEDBACK_DOCS": Name("First documents that move a query's vector.", _COUNT),
        "ALPHA": Name("How far they move it.", "from 0"),
        "FEEDBACK_WEIGHT": Name(
            "Weight of feedback in the order to learn, beside 1 of each other search.",
            "a number from 0",
        ),
        "VECTORS": Name(
            "What makes the teacher's vectors of texts.",
            "@embedding.Encoder(), @embedding.VectorFile(), @embedding.Endpoint()",
        ),
        "VECTOR_FILE": Name("Existing vectors.", "a .npy or .parquet path, None"),
        "TEXTS": Name("Texts that are embedded.", "('documents', 'queries')"),
        "NORMALISATION": Name(
            "Scale of the teacher's scores.", "none, zscore, minmax, percentile"
        ),
        "DROP_BELOW_PERCENTILE": Name(
            "Queries whose best score is below this percentile are left out.",
            "a number from 0 to 100, None",
        ),
        "SOURCE_FIRST": Name(
            "A generated query's source document is its positive.", "True, False"
        ),
    },
    "Loss": {
        "LOSS": Name("The loss.", "its name, e.g. adr_mse, or @losses.NAME"),
        "TERMS": Name("Terms of the loss.", "(@SCOPE/losses.Term(), ...)"),
        "LIST_SIZE": Name("Documents in a training list.", _COUNT),
        "STUDENT_TEMPERATURE": Name("Divides the student's scores.", "above 0"),
        "TEACHER_TEMPERATURE": Name("Divides the teacher's scores.", "above 0"),
        "MATRYOSHKA": Name(
            "Numbers of dimensions at which the loss is taken as well.",
            "e.g. (192, 96), ()",
        ),
        "METRIC": Name("Distance of vectors.", "l2, mse, cosine"),
        "SIMILARITY_WEIGHT": Name("Weight of the similarity matrices.", "from 0"),
        "LISTMLE_ON": Name("What ListMLE is taken of.", "logits, probabilities"),
        "CONTRASTIVE_WEIGHT": Name("Weight of the contrastive term.", "from 0"),
        "CONTRASTIVE_TEMPERATURE": Name("Temperature of that term.", "above 0"),
        "CONTRASTIVE_LIST_SIZE": Name("Documents in a contrastive list.", _COUNT),
        "FALSE_NEGATIVE_THRESHOLD": Name(
            "Documents that the teacher scores above this share of the positive's "
            "score do not count as negatives.",
            f"{_SHARE}, None",
        ),
        "PAIR_WEIGHT": Name("Weight of the pairwise term.", "from 0"),
        "QUERY_FLOPS": Name("Weight of the FLOPS of queries.", "from 0"),
        "DOC_FLOPS": Name("Weight of the FLOPS of documents.", "from 0"),
        "FLOPS_RAMP": Name(
            "Updates in which those weights grow as the square of their number, or "
            "below 1 their share.",
            "from 0",
        ),
        "SPARSE_TERMS": Name("Terms of the loss of a SPLADE student.", "terms"),
        "KL": Name("Terms of a listwise loss: TERMS=%KL.", "terms"),
    },
    "Training": {
        "TRAIN_STEPS": Name("Updates; None counts EPOCHS.", f"{_COUNT}, None"),
        "DISTILL_STEPS": Name("Updates of the second stage.", f"{_COUNT}, None"),
        "EPOCHS": Name("Passes over the lists.", "a number above 0, None"),
        "STAGES": Name("Stages of a round.", "(@stage.Stage(), ...)"),
        "DIRECT": Name("Direct Distillation: STAGES=%DIRECT.", "stages"),
        "ROUNDS": Name("Times that the stages are repeated.", _COUNT),
        "BATCH_SIZE": Name("Lists in a batch, over all devices.", _COUNT),
        "CHUNK": Name("Queries encoded at once on a device.", f"{_COUNT}, None"),
        "MICRO_BATCH": Name("Queries in one pass on a device.", f"{_COUNT}, None"),
        "REMAT": Name(
            "What layers compute again backward, to save memory.",
            "none, matmuls, full, None",
        ),
        "ZERO": Name(
            "Divides the optimizer's moments over the data axis (ZeRO-1).",
            "True, False",
        ),
        "LEARNING_RATE": Name("Peak learning rate.", "a number above 0"),
        "RANKER_LEARNING_RATE": Name("The same of the first stage.", "above 0"),
        "SCHEDULE": Name(
            "Course of the learning rate; @schedules.NAME takes bindings.",
            "linear, constant, floor, epochs_to_floor, @...",
        ),
        "WARMUP": Name("Steps of warm-up, or below 1 their share.", "from 0"),
        "OPTIMIZER": Name(
            "Optimizer; @optimizers.NAME or your own takes bindings.",
            "adamw, adafactor, @...",
        ),
        "WEIGHT_DECAY": Name("Weight decay of AdamW.", "from 0"),
        "CLIP": Name("Largest norm of the gradient.", "above 0, None"),
        "MEASURE": Name(
            "What chooses the best checkpoint; None keeps the last.",
            "loss, nDCG@10, ..., None",
        ),
        "MEASURE_FIRST": Name(
            "Measures before the first step too; the start may be the best.",
            "True, False",
        ),
        "HELD_OUT": Name("Share of the lists that the loss is measured on.", _SHARE),
        "EVAL_PERIOD": Name("Steps between evaluations.", f"{_COUNT}, epoch, None"),
        "PATIENCE": Name("Evaluations without gain before a stop.", f"{_COUNT}, None"),
        "LOG_PERIOD": Name(
            "Steps that one record of metrics.jsonl is the mean of.", _COUNT
        ),
        "LOGGERS": Name(
            "Where numbers are shown while training runs; None is TensorBoard where it "
            "is installed.",
            "a list of tensorboard, wandb, mlflow, trackio; None",
        ),
        "COMPILE_CACHE": Name(
            "Folder of compiled programs, which later runs reuse.", "a path, None"
        ),
        "CHECKPOINT_PERIOD": Name("Steps between checkpoints.", f"{_COUNT}, None"),
        "TRAINABLE": Name(
            "What is trained: regular expressions, searched for in the names of "
            "parameters, or low-rank adapters (docs/howto/parts-of-a-model.md); None "
            "is all.",
            "'layers\\.(10|11)\\.|head', lora, 'lora:rank=16,alpha=32', several, None",
        ),
        "TRAINED": Name(
            "What is trained: both towers, or with frozen document vectors the query "
            "tower or a linear layer on its vector.",
            "both, query, adapter",
        ),
        "AVERAGES": Name(
            "Shares of the trained weights in a mean with the start's; dev chooses.",
            "numbers from 0 to 1",
        ),
        "LAYERS": Name("Layers of the checkpoint that are kept.", "(0, 2, 4), None"),
        "KEEP_PROJECTION": Name(
            "Whether the layer of the teacher's width stays.", "True, False"
        ),
        "STOP_MEASURE": Name(
            "Rounds end when this measure stops growing on dev; None runs all.",
            "nDCG@10, ..., None",
        ),
    },
    "Measuring": {
        "BESIDE": Name(
            "Sources measured with the student before and after.", "{'NAME': @SOURCE()}"
        ),
        "KEEP_BASE": Name(
            "What the job started from is kept unless dev queries gain.", "True, False"
        ),
        "COMPACT": Name(
            "Smaller vectors of a dual encoder that are measured as well.",
            "dimensions, 'int8', 'binary', 'rescored', ()",
        ),
        "MOST_RISK": Name(
            "Calibrates scores on dev queries, with the threshold at which this share "
            "of first documents is wrong.",
            f"{_SHARE}, None",
        ),
        "ELSEWHERE": Name(
            "Other collections that are measured before and after training.",
            "('beir:PATH', ...), ()",
        ),
        "MEASURES": Name("Measures; the first decides.", "('nDCG@10', 'RR@10', ...)"),
        "PUBLISHED": Name(
            "A paper's figures, put beside a table's cells.",
            "{'SYSTEM': {'COLLECTION': 0.5}}",
        ),
        "HITS": Name("Depths of the hit rates of answers.", "(5, 10)"),
        "QRELS": Name(
            "Judgements that runs are measured by, without documents.", "PATH, None"
        ),
        "COUNT_MISSING": Name("Queries without a ranking count 0.", "True, False"),
    },
}


def known() -> dict[str, Name]:
    """All names, whatever their group."""
    return {name: entry for group in GROUPS.values() for name, entry in group.items()}


def help_text(header: Iterable[str], values: Mapping[str, str]) -> str:
    """A recipe's header and a table of its names, grouped.

    Args:
        header: the comment lines that the recipe opens with.
        values: what the recipe sets each of its names to, as gin text.
    """
    lines = [line.lstrip("#").removeprefix(" ") for line in header]
    width = max((len(name) for name in values), default=0)
    for group, entries in GROUPS.items():
        here = [name for name in entries if name in values]
        if here:
            lines += ["", group]
        for name in here:
            lines += _entry(name, entries[name], values[name], width)
    own = sorted(set(values) - set(known()))
    if own:
        lines += ["", "Names of this file alone"]
        lines += [f"  {name:{width}} = {values[name]}" for name in own]
    return "\n".join(lines)


def _entry(name: str, entry: Name, value: str, width: int) -> list[str]:
    indent = " " * (width + 5)
    text = f"{entry.meaning} [{entry.values}]"
    value = "must be given" if value == "%gin.REQUIRED" else value
    lines = [f"  {name:{width}} = {value}"]
    return lines + textwrap.wrap(
        text, 88, initial_indent=indent, subsequent_indent=indent
    )


def reference(recipes: Mapping[str, Iterable[str]]) -> str:
    """All names as a page of Markdown.

    Args:
        recipes: the names of each shipped recipe.
    """
    lines = [
        "# Names of recipes",
        "",
        "Every name is set by `--gin.NAME=VALUE`. `distill_jax --gin_file=RECIPE.gin "
        "--help` shows those of one recipe, with their values there.",
    ]
    users: dict[str, list[str]] = {}
    for recipe, names in recipes.items():
        for name in names:
            users.setdefault(name, []).append(recipe.removesuffix(".gin"))
    for group, entries in GROUPS.items():
        lines += ["", f"## {group}", "", "| name | meaning | values | recipes |"]
        lines.append("| --- | --- | --- | --- |")
        for name, entry in entries.items():
            used = sorted(users.get(name, ()))
            where = ", ".join(used) if len(used) < 8 else f"{len(used)} recipes"
            lines.append(
                f"| `{name}` | {entry.meaning} | {_cell(entry.values)} | {where} |"
            )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
