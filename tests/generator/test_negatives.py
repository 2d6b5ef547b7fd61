"""Questions beside a paragraph that does not answer them."""

from __future__ import annotations

from tritonpress_generator import squad
from tritonpress_generator.training import question_answering


def negatives(share: float) -> tuple[list[squad.Question], list[squad.Question]]:
    """Returns questions of articles with three paragraphs, and the negatives that are made of them."""
    texts = ["red lamp", "blue chair", "red chair"]
    questions = [
        squad.Question(f"{article}-{i}", "?", f"{text} {article}", (squad.Answer(text.split()[0], 0),), str(article))
        for article in range(20)
        for i, text in enumerate(texts)
    ]
    config = question_answering.Config(negatives=share, seed=1)
    made = question_answering.augmented(questions, config)
    assert made[: len(questions)] == questions
    return questions, made[len(questions) :]


def test_negatives_are_of_the_same_article_and_have_none_of_the_answers() -> None:
    questions, made = negatives(0.5)
    by_id = {question.question_id: question for question in questions}
    for negative in made:
        origin = by_id[negative.question_id.removesuffix("-none")]
        assert negative.answers == ()
        assert (negative.title, negative.question) == (origin.title, origin.question)
        assert negative.context != origin.context
        assert not any(answer.text in negative.context for answer in origin.answers)
    assert len({negative.question_id for negative in made}) == len(made)
    assert {negative.context[:3] for negative in made} == {"red", "blu"}


def test_as_many_negatives_as_were_asked_for() -> None:
    assert [len(negatives(share)[1]) for share in (0.0, 0.5, 1.0)] == [0, 30, 60]
