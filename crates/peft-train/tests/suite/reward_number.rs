//! Reading answers.

use peft_train::reward::{AnswerForm, NumberMatch};

fn strict(form: AnswerForm, right: &str, completion: &str) -> bool {
    NumberMatch::strict(form).matches(right, completion)
}

#[test]
fn a_marked_answer_is_what_follows_the_last_marker_on_its_line() {
    for (right, completion, expected) in [
        ("18", "9 * 2 = 18\n#### 18", true),
        ("18", "#### 17\n#### 18", true),
        ("17", "#### 17\n#### 18", false),
        ("18", "The answer is: 18", true),
        ("18", "The answer is 18", true),
        ("18", "The final answer is: $18.", true),
        ("18", "The final answer is 18!", true),
        ("18", "The answer is: 17, no.\nThe final answer is: 18", true),
        // Here PEFT's list of markers would decide, and 17 be the answer.
        ("18", "The answer is: 17\n#### 18", true),
        ("18", "#### 18\nThe next question is about 20 hens.", true),
        ("18", "#### \n18\n19", true),
        ("50", "The answer is: 50%", true),
        ("18", "18", false),
        ("18", "The answer is: 18 eggs", false),
        ("18", "The answer is:18", false),
        ("18", "the answer is: 18", false),
        ("18", "The answer is: ", false),
        ("18", "####18", false),
        ("18", "", false),
    ] {
        assert_eq!(strict(AnswerForm::Marked, right, completion), expected, "{right} in {completion:?}");
    }
}

#[test]
fn a_bare_answer_stands_alone() {
    for (right, completion, expected) in [
        ("46", "46", true),
        ("46", " 46.\n", true),
        ("46", "$46", true),
        ("46", "...46!", true),
        ("0.46", "It .46", false),
        ("0.46", " $.46.", true),
        ("46", ".46", false),
        ("46", "046", true),
        ("46", "46\n47", false),
        ("46", "12+34=46", false),
        ("46", "4 6", false),
        ("46", "#### 46", false),
        ("46", "", false),
    ] {
        assert_eq!(strict(AnswerForm::Bare, right, completion), expected, "{right} in {completion:?}");
    }
    assert!(strict(AnswerForm::MarkedOrBare, "46", "46") && strict(AnswerForm::MarkedOrBare, "46", "x\n#### 46"));
    assert!(!strict(AnswerForm::MarkedOrBare, "46", "46\n#### 47"));
}

#[test]
fn numbers_are_compared_as_numbers() {
    for (right, others) in [
        ("1000", &["1,000", "$1,000", "1000.00", "1\u{202f}000", "2000/2", "+1000", "€1000", "1,000.0%", "01000"][..]),
        ("-5", &["-5", "−5", "–5", "-$5", "$-5", "-5.0", "-10/2"]),
        ("0.5", &["1/2", ".5", "0.50", "50/100", "$.50"]),
        ("1/3", &["1/3", "2/6", "10/30"]),
        ("0", &["0", "-0", "0.0", "0/7"]),
        ("1,234,567", &["1234567", "1,234,567.00"]),
        ("123456789012345678901234567890", &["123,456,789,012,345,678,901,234,567,890.0"]),
    ] {
        for other in others {
            assert!(strict(AnswerForm::Bare, right, other), "{right} is {other}");
            assert!(strict(AnswerForm::Bare, other, right), "{other} is {right}");
            assert!(
                NumberMatch::flexible().matches(right, &format!("So it is {other}.")),
                "{right} at the end: {other}"
            );
        }
    }
    for (right, other) in [
        ("1000", "1,00"),
        ("1000", "1.000"),
        ("5", "-5"),
        ("0.3333333333333333", "1/3"),
        ("9007199254740993", "9007199254740992"),
        ("123456789012345678901234567890", "123456789012345678901234567891"),
        ("5", "5/0"),
        ("5", "10/2/1"),
        ("12", "1 2"),
        ("5", "five"),
        ("5", "5e0"),
        ("5", "--5"),
    ] {
        assert!(!strict(AnswerForm::Bare, right, other), "{right} is not {other}");
    }
}

#[test]
fn the_flexible_reading_takes_the_last_number() {
    for (completion, last) in [
        ("First 3, then 12 + 34 = 46.", "46"),
        ("She makes $18 every day, in 2024? No: $1,018.50!", "1018.5"),
        ("16 - 3 - 4 = 9", "9"),
        ("9=16-3-4", "4"),
        ("x=-4", "-4"),
        ("(2)-4", "4"),
        ("about COVID-19", "19"),
        ("it fell by −7 degrees", "-7"),
        ("\\boxed{16}", "16"),
        ("**72**", "72"),
        ("between 5–10", "10"),
        ("half of it, 1/2", "0.5"),
        ("on 1/2/2020", "2020"),
        ("version 3.14.15", "15"),
        ("so ...5", "5"),
        ("he has 1,2", "2"),
        ("1,0000", "0"),
        ("12,345,67", "67"),
        ("100%", "100"),
        ("US$5", "5"),
        ("US$-5", "-5"),
        ("4$-5$", "5"),
        ("4$-5", "5"),
        ("7 000 000", "0"),
        ("7\u{a0}000\u{a0}000 and", "7000000"),
        ("x2", "2"),
        ("٣ and 4 ٣", "4"),
    ] {
        let read = |right| NumberMatch::flexible().matches(right, completion);
        assert!(read(last), "{last} in {completion:?}");
        assert!(!read("123"), "{completion:?}");
    }
    for completion in ["", "no number", "-", "$", ".", "%", "1/", "−", "/", "####"] {
        assert!(!NumberMatch::flexible().matches("0", completion), "{completion:?}");
    }
    // The last number decides, even if it has too many digits to be read.
    assert!(!NumberMatch::flexible().matches("5", &format!("5 and {}", "9".repeat(60))));
}

#[test]
fn answers_that_are_no_numbers_are_texts() {
    for form in [AnswerForm::Bare, AnswerForm::MarkedOrBare] {
        assert!(
            strict(form, "Paris", " Paris.")
                && !strict(form, "Paris", "It is Paris")
                && !strict(form, "Paris", "paris")
        );
    }
    assert!(strict(AnswerForm::Marked, "blue whale", "The answer is: blue whale."));
    for (completion, expected) in [("It is PARIS!", true), ("Parisians", false), ("in paris2", false), ("", false)] {
        assert_eq!(NumberMatch::flexible().matches("Paris", completion), expected, "{completion}");
    }
    for right in ["", " ", ".", "$"] {
        let readings = [NumberMatch::flexible(), NumberMatch::strict(AnswerForm::Bare)];
        assert!(
            readings.iter().all(|reading| !reading.matches(right, "") && !reading.matches(right, right)),
            "{right:?}"
        );
    }
}

/// Completions are arbitrary text: reading them must be fast and safe whatever they are.
#[test]
fn long_and_strange_completions_are_read_in_no_time() {
    let pieces =
        ["1,", "1/", "1.", "-", "$", "9", "9,999", "1/2/", "–", "\u{202f}1", "𝟗", "The answer is: ", "#### ", "\u{0}"];
    let begun = std::time::Instant::now();
    for piece in pieces {
        let text = piece.repeat(200_000);
        for reading in [NumberMatch::flexible(), NumberMatch::strict(AnswerForm::Marked)] {
            assert!(!reading.matches("7", &text), "{piece:?}");
        }
    }
    // Quadratic time would be hours.
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
