//! Tasks that make their problems up.

use peft_train::chat::{ChatTemplate, Message};
use peft_train::data::Row;
use peft_train::task::{ArithmeticConfig, ArithmeticStyle, Operation, Problem, Prompt, Reading, Sum, Task, TaskFiles};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn text(problem: &Problem) -> String {
    match &problem.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat(messages) => {
            let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}";
            ChatTemplate::new(plain, BTreeMap::new()).unwrap().render(messages, true).unwrap()
        }
    }
}

fn arithmetic(change: impl FnOnce(&mut ArithmeticConfig)) -> peft_train::Result<Task> {
    let mut config = ArithmeticConfig::default();
    change(&mut config);
    Task::arithmetic(config)
}

fn refusal(result: peft_train::Result<Task>, says: &[&str]) {
    let error = result.unwrap_err().to_string();
    assert!(says.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn problems_depend_on_their_number_and_the_seed_alone() {
    for task in [Task::sums(), arithmetic(|_| {}).unwrap()] {
        let prompts = |task: &Task, from: u64| -> Vec<String> {
            (from..from + 50).map(|index| text(&task.problem(index))).collect()
        };
        assert_eq!(prompts(&task, 0), prompts(&task.clone(), 0));
        assert_eq!(prompts(&task, 7)[..40], prompts(&task, 0)[7..47]);
        assert!(prompts(&task, 0).iter().collect::<BTreeSet<_>>().len() > 40, "problems differ");
        let other = task.clone().with_seed(1);
        assert_ne!(prompts(&other, 0), prompts(&task, 0));
        assert_ne!(other.fingerprint(), task.fingerprint());
        assert_eq!(task.clone().with_seed(0).fingerprint(), task.fingerprint());
        let eval = |task: &Task| task.eval_problems().iter().map(text).collect::<Vec<_>>();
        assert_eq!(eval(&other), eval(&task));
        text(&task.problem(u64::MAX));
    }
    assert_ne!(Task::sums().fingerprint(), arithmetic(|_| {}).unwrap().fingerprint());
}

/// The embedded model was trained with this rule; another would make its test a sham.
#[test]
fn a_tenth_of_the_sums_is_held_out_for_good() {
    let all: BTreeSet<String> = (0..50u32)
        .flat_map(|a| (0..50u32).map(move |b| (a, b)))
        .filter(|(a, b)| (a * 7 + b * 13) % 10 == 0)
        .map(|(a, b)| format!("{a}+{b}="))
        .collect();
    let task = Task::sums();
    let eval: Vec<String> = task.eval_problems().iter().map(text).collect();
    assert_eq!((eval.len(), &eval.iter().cloned().collect::<BTreeSet<_>>()), (250, &all));
    let mut sorted = eval.clone();
    sorted.sort();
    assert_ne!(eval, sorted, "a beginning is a fair sample");
    assert_eq!(eval[..4], ["4+14=", "42+2=", "42+42=", "32+2="], "the order is fixed for good");
    for index in 0..20_000 {
        let problem = task.problem(index);
        let prompt = text(&problem);
        assert!(!all.contains(&prompt), "{prompt}");
        let (a, b) = prompt.trim_end_matches('=').split_once('+').unwrap();
        let (a, b): (u32, u32) = (a.parse().unwrap(), b.parse().unwrap());
        assert!(a < 50 && b < 50);
        assert_eq!(problem.answer, (a + b).to_string());
    }
    assert!(Sum { a: 0, b: 0 }.is_held_out() && !Sum { a: 0, b: 1 }.is_held_out());
}

/// 2250 sums in 45,000 draws: 20 of each, with a standard deviation of 4.5. The sum of squared deviations over 20 is chi-squared
/// with 2249 degrees of freedom, that is 2249 with a standard deviation of 67.
#[test]
fn sums_are_drawn_evenly() {
    let task = Task::sums();
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    (0..45_000).for_each(|index| *counts.entry(text(&task.problem(index))).or_default() += 1.0);
    assert_eq!(counts.len(), 2250);
    let squares: f64 = counts.values().map(|count| (count - 20.0) * (count - 20.0) / 20.0).sum();
    assert!((squares - 2249.0).abs() < 5.0 * 67.0, "{squares}");
}

#[test]
fn arithmetic_is_right_and_holds_pairs_out_in_any_order() {
    let all = vec![Operation::Add, Operation::Subtract, Operation::Multiply];
    let task = arithmetic(|config| {
        config.operations = all;
        config.operands = 2..=40;
        config.eval_problems = 300;
        config.style = ArithmeticStyle::Chat("{}".to_owned());
        config.examples = 0;
    })
    .unwrap();
    let parse = |problem: &Problem| {
        let prompt = text(problem);
        let parts: Vec<&str> = prompt.trim_start_matches("user: ").split(' ').collect();
        let [a, operation, b] = parts[..] else { panic!("{prompt}") };
        let (a, b): (i64, i64) = (a.parse().unwrap(), b.parse().unwrap());
        let answer = match operation {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            other => panic!("{other}"),
        };
        assert_eq!(problem.answer, answer.to_string(), "{prompt}");
        assert!(answer >= 0 && (2..=40).contains(&a) && (2..=40).contains(&b), "{prompt}");
        (operation.to_owned(), (a.min(b), a.max(b)), a < b)
    };
    let eval: Vec<_> = task.eval_problems().iter().map(parse).collect();
    let held_out: BTreeSet<_> = eval.iter().map(|(_, pair, _)| *pair).collect();
    let distinct: BTreeSet<String> = task.eval_problems().iter().map(text).collect();
    assert!((200..=300).contains(&distinct.len()) && distinct.len() == eval.len(), "{}", distinct.len());
    let (mut seen, mut operations) = (BTreeSet::new(), BTreeMap::<_, usize>::new());
    for index in 0..6000 {
        let (operation, pair, rising) = parse(&task.problem(index));
        assert!(!held_out.contains(&pair), "{pair:?}");
        seen.insert(pair);
        *operations.entry((operation, rising)).or_default() += 1;
    }
    // 780 pairs, of which a tenth is held out.
    assert!((650..=740).contains(&seen.len()), "{}", seen.len());
    assert!(operations.len() == 5 && operations.values().all(|count| *count > 800), "{operations:?}");
}

/// The examples are right, the same everywhere, and not about what is measured.
#[test]
fn questions_come_after_examples() {
    let task = arithmetic(|config| {
        config.operations = vec![Operation::Add, Operation::Subtract];
        config.style = ArithmeticStyle::Chat("What is {}? Answer with the number only.".to_owned());
        config.examples = 3;
    })
    .unwrap();
    let turns = |problem: &Problem| {
        let Prompt::Chat(messages) = &problem.prompt else { panic!("not a chat") };
        let roles: Vec<String> = messages.iter().map(Message::role).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant", "user", "assistant", "user"]);
        let render = |messages: &[Message]| {
            ChatTemplate::new("{% for m in messages %}{{ m.content }}\n{% endfor %}", BTreeMap::new())
                .unwrap()
                .render(messages, true)
                .unwrap()
        };
        (render(&messages[..6]), render(&messages[6..]))
    };
    let (examples, _) = turns(&task.problem(0));
    assert!(task.eval_problems().iter().all(|problem| turns(problem).0 == examples));
    assert!((0..9).all(|index| turns(&task.clone().with_seed(7).problem(index)).0 == examples));
    let lines: Vec<&str> = examples.lines().collect();
    for pair in lines.chunks(2) {
        let exercise = pair[0].trim_start_matches("What is ").split('?').next().unwrap();
        let parts: Vec<&str> = exercise.split(' ').collect();
        let (a, b): (i64, i64) = (parts[0].parse().unwrap(), parts[2].parse().unwrap());
        assert_eq!(pair[1], if parts[1] == "+" { a + b } else { a - b }.to_string());
        for operation in ["+", "-"] {
            for (a, b) in [(a, b), (b, a)] {
                let asked = format!("What is {a} {operation} {b}?");
                assert!(!task.eval_problems().iter().any(|problem| turns(problem).1.starts_with(&asked)), "{asked}");
            }
        }
    }
}

#[test]
fn lines_end_where_the_answer_begins() {
    let task = Task::arithmetic(ArithmeticConfig::default()).unwrap();
    let problem = &task.eval_problems()[0];
    let prompt = text(problem);
    let lines: Vec<&str> = prompt.lines().collect();
    assert_eq!(lines.len(), 5, "{prompt}");
    for line in &lines[..4] {
        let (sum, answer) = line.split_once(" = ").unwrap();
        let (a, b) = sum.split_once(" + ").unwrap();
        assert_eq!(a.parse::<u32>().unwrap() + b.parse::<u32>().unwrap(), answer.parse::<u32>().unwrap(), "{line}");
    }
    assert!(lines[4].ends_with(" ="), "{prompt}");
    assert_eq!(task.stop_strings(), ["\n"]);
    let completion = task.demonstration(problem).unwrap();
    assert_eq!(completion, format!(" {}", problem.answer));
    assert!(task.read(problem, &completion).strict);
}

#[test]
fn arithmetic_refuses_what_cannot_be_asked() {
    refusal(arithmetic(|config| config.operations.clear()), &["operations", "+, - and *"]);
    refusal(arithmetic(|config| config.style = ArithmeticStyle::Chat("What?".to_owned())), &["style", "`What?`", "{}"]);
    refusal(arithmetic(|config| config.eval_problems = 0), &["eval_problems", "at least 1"]);
    #[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
    for operands in [9..=3, 1..=u32::MAX] {
        refusal(arithmetic(|config| config.operands = operands), &["operands", "range", "1000000"]);
    }
    refusal(arithmetic(|config| config.operands = 5..=5), &["operands", "5..=5", "too few"]);
    let few = arithmetic(|config| config.operands = 1..=9).unwrap();
    assert!((1..60).contains(&few.eval_problems().len()), "{}", few.eval_problems().len());
    for (one, other) in [(10..=98, 10..=99), (10..=99, 10..=99)] {
        let fingerprint = |operands: std::ops::RangeInclusive<u32>| {
            arithmetic(|config| config.operands = operands).unwrap().fingerprint()
        };
        assert_eq!(fingerprint(one.clone()) == fingerprint(other.clone()), one == other);
    }
}

#[test]
fn the_two_readings_differ() {
    let reading = |strict, flexible| Reading { strict, flexible };
    for task in [Task::sums(), arithmetic(|_| {}).unwrap()] {
        let problem = task.problem(0);
        let answer = &problem.answer;
        let right = task.demonstration(&problem).unwrap();
        assert_eq!(task.read(&problem, &right), reading(true, true));
        assert_eq!(task.read(&problem, &format!("It is {answer}.")), reading(false, true));
        assert_eq!(task.read(&problem, &format!("{answer} or 1")), reading(false, false));
        assert_eq!(task.read(&problem, ""), reading(false, false));
        assert_eq!(task.rewards().names().collect::<Vec<_>>(), ["number"]);
        assert!(task.max_new_tokens() >= answer.len());
    }
    assert_eq!(Task::sums().stop_strings(), ["\n"]);
}

#[test]
fn tasks_have_names() {
    let none = TaskFiles::default();
    for name in ["sums", "arithmetic"] {
        assert_eq!(Task::by_name_or_path(name, none).unwrap().name(), name);
        let files = TaskFiles { train: Some("x".as_ref()), eval: None };
        refusal(Task::by_name_or_path(name, files), &["task", name, "reads no files"]);
    }
    refusal(Task::by_name_or_path("gsm8k", none), &["task", "gsm8k", "training rows"]);
    refusal(Task::by_name_or_path("summs", none), &["`summs`", "sums, arithmetic, gsm8k", "JSONL"]);
}

/// What supervised training on the same problems reads.
#[test]
fn prompts_and_demonstrations_make_training_rows() {
    let task = Task::sums();
    let problem = task.problem(3);
    let row = serde_json::json!({"prompt": text(&problem), "completion": task.demonstration(&problem)}).to_string();
    assert!(matches!(Row::parse(&row).unwrap(), Row::Completion { .. }));
}
