//! Tasks read from files.

use crate::task::text;
use peft_train::Error;
use peft_train::task::{Gsm8kPrompt, Prompt, Task, TaskFiles};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A file of `count` rows whose prompts are `p0`, `p1` and so on.
    fn rows(&self, name: &str, count: usize) -> PathBuf {
        let row = |n| format!("{{\"prompt\": \"p{n}\", \"answer\": {n}, \"level\": \"easy\"}}\n");
        self.write(name, (0..count).map(row).collect::<String>())
    }
}

fn gsm8k_fixture() -> PathBuf {
    crate::fixtures::path("task/gsm8k_format.jsonl")
}

fn prompts(task: &Task, indices: std::ops::Range<u64>) -> Vec<String> {
    indices.map(|index| text(&task.problem(index))).collect()
}

#[test]
fn rows_come_in_shuffled_epochs() {
    let folder = Folder::new();
    let (train, eval) = (folder.rows("train.jsonl", 7), folder.rows("eval.jsonl", 2));
    let task = Task::from_jsonl(&train, Some(&eval)).unwrap();
    let all: BTreeSet<String> = (0..7).map(|n| format!("p{n}")).collect();
    let epochs = [0, 7, 14].map(|start| prompts(&task, start..start + 7));
    for epoch in &epochs {
        assert_eq!(epoch.iter().cloned().collect::<BTreeSet<_>>(), all);
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    assert_ne!(prompts(&task.clone().with_seed(1), 0..7), epochs[0]);
    assert_eq!(task.eval_problems().iter().map(text).collect::<Vec<_>>(), ["p0", "p1"]);
    let problem = task.problem(0);
    assert_eq!((&problem.answer, &problem.fields["level"]), (&text(&problem)[1..].to_owned(), &"easy".into()));
    assert_eq!(task.name(), train.display().to_string());
}

#[test]
fn without_a_file_to_measure_with_every_tenth_row_is_held_out() {
    let folder = Folder::new();
    let task = Task::from_jsonl(&folder.rows("train.jsonl", 25), None).unwrap();
    assert_eq!(task.eval_problems().iter().map(text).collect::<Vec<_>>(), ["p9", "p19"]);
    let trained: BTreeSet<String> = prompts(&task, 0..100).into_iter().collect();
    assert!(trained.len() == 23 && !trained.contains("p9") && !trained.contains("p19"));
    let error = Task::from_jsonl(&folder.rows("few.jsonl", 9), None).unwrap_err().to_string();
    assert!(error.contains("few.jsonl has 9 rows") && error.contains("file to measure with"), "{error}");
}

#[test]
fn prompts_may_be_chats_and_answers_texts() {
    let folder = Folder::new();
    let row = r#"{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital of France?"}], "answer": "Paris"}"#;
    let other = r#"{"prompt": "2+2=", "answer": 4.0, "completion": "4, of course"}"#;
    let file = folder.write("rows.jsonl", format!("\n{row}\n \n{other}\n{{\"prompt\": \"?\", \"answer\": \"\"}}\n"));
    let task = Task::from_jsonl(&file, Some(&file)).unwrap();
    let [chat, sum, open] = task.eval_problems() else { panic!() };
    assert!(matches!(&chat.prompt, Prompt::Chat(messages) if messages.len() == 2));
    assert_eq!((chat.answer.as_str(), sum.answer.as_str()), ("Paris", "4.0"));
    assert!(task.read(chat, "Paris.").strict && task.read(chat, "It is paris").flexible);
    assert!(task.read(sum, "#### 4").strict && task.read(sum, "4").strict && !task.read(sum, "so 4").strict);
    assert_eq!(task.demonstration(chat).as_deref(), Some("Paris"));
    assert_eq!(task.demonstration(sum).as_deref(), Some("4, of course"));
    assert_eq!(task.demonstration(open), None);
}

#[test]
fn faulty_rows_are_named_by_file_and_line() {
    let folder = Folder::new();
    let good = r#"{"prompt": "a", "answer": "b"}"#;
    for (bad, says) in [
        ("{\"prompt\": \"a\"", "EOF while parsing an object at column 14"),
        ("[1]", "expected a map"),
        (r#"{"answer": "b"}"#, "has no `prompt`; a row is"),
        (r#"{"prompt": 5, "answer": "b"}"#, "`prompt` must be a text or a list of messages"),
        (r#"{"prompt": [], "answer": "b"}"#, "`prompt` is empty"),
        (r#"{"prompt": "", "answer": "b"}"#, "`prompt` is empty"),
        (
            r#"{"prompt": [{"content": "x"}], "answer": "b"}"#,
            "`prompt`: a message must be an object with a text `role`",
        ),
        (r#"{"prompt": "a"}"#, "has no `answer`"),
        (r#"{"prompt": "a", "answer": null}"#, "`answer` must be a text or a number"),
    ] {
        let file = folder.write("rows.jsonl", format!("{good}\n\n{bad}\n{good}"));
        for result in [Task::from_jsonl(&file, Some(&file)), Task::from_jsonl(&file, None)] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("rows.jsonl, line 3: ") && error.contains(says), "{error}");
        }
    }
    let file = folder.write("latin1.jsonl", [good.as_bytes(), b"\n\"\xe9\"\n"].concat());
    let error = Task::from_jsonl(&file, None).unwrap_err().to_string();
    assert!(error.contains("latin1.jsonl, line 2: is not UTF-8 text"), "{error}");
    let train = folder.rows("train.jsonl", 12);
    assert!(matches!(Task::from_jsonl(&train, Some(&file)).unwrap_err(), Error::Row { .. }));
    assert!(matches!(Task::from_jsonl(Path::new("/no/such.jsonl"), None).unwrap_err(), Error::Io { .. }));
    assert!(matches!(Task::from_jsonl(&folder.write("e", "\n"), None).unwrap_err(), Error::EmptyDataset(_)));
}

#[test]
fn the_fingerprint_tells_files_apart() {
    let folder = Folder::new();
    let (ten, eleven) = (folder.rows("10", 10), folder.rows("11", 11));
    let of = |train: &Path, eval: Option<&Path>| Task::from_jsonl(train, eval).unwrap().fingerprint();
    let same = folder.write("same", fs::read_to_string(&ten).unwrap().replace('\n', "\n\n"));
    assert_eq!(of(&ten, None), of(&same, None));
    let all =
        [of(&ten, None), of(&eleven, None), of(&ten, Some(&eleven)), of(&eleven, Some(&ten)), of(&ten, Some(&ten))];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    let harder = folder.write("hard", fs::read_to_string(&ten).unwrap().replace("easy", "hard"));
    assert_ne!(of(&ten, None), of(&harder, None), "rewards read the other fields");
}

#[test]
fn gsm8k_rows_become_prompts_answers_and_demonstrations() {
    let file = gsm8k_fixture();
    let task = Task::gsm8k(&file, Some(&file), Gsm8kPrompt::Text).unwrap();
    let answers: Vec<&str> = task.eval_problems().iter().map(|problem| problem.answer.as_str()).collect();
    assert_eq!(answers, ["11", "1,250", "-4", "0.5", "36", "2/3"]);
    let first = &task.eval_problems()[0];
    assert_eq!(
        text(first),
        "Question: Mira has 4 pears and picks 7 more. How many pears does she have? Think step by step.\nAnswer:"
    );
    assert_eq!(first.fields["question"], "Mira has 4 pears and picks 7 more. How many pears does she have?");
    for problem in task.eval_problems() {
        let demonstration = task.demonstration(problem).unwrap();
        let reading = task.read(problem, &demonstration);
        assert!(reading.strict && reading.flexible, "{demonstration}");
        assert!(!task.read(problem, &demonstration.replace("#### ", "#### 9")).strict);
        assert_eq!(demonstration.strip_prefix(' '), problem.fields["solution"].as_str());
    }
    let chat = Task::gsm8k(&file, Some(&file), Gsm8kPrompt::Chat).unwrap();
    let first = &chat.eval_problems()[0];
    assert!(matches!(&first.prompt, Prompt::Chat(_)) && text(first).contains("####"));
    assert_eq!(chat.demonstration(first).as_deref(), first.fields["solution"].as_str());
    assert_ne!(chat.fingerprint(), task.fingerprint());
    assert_eq!(task.stop_strings(), ["\nQuestion:"]);
}

#[test]
fn gsm8k_refuses_rows_without_a_number_behind_the_marker() {
    let folder = Folder::new();
    for (bad, says) in [
        (r#"{"question": "q", "answer": "It is 5."}"#, "no number after its last `#### `"),
        (r#####"{"question": "q", "answer": "#### five"}"#####, "no number after its last `#### `"),
        (r#####"{"question": "q"}"#####, "has no `answer`"),
        (r#####"{"answer": "#### 5"}"#####, "has no `question`"),
        (r#####"{"question": 5, "answer": "#### 5"}"#####, "`question` must be a text"),
    ] {
        let file = folder.write("bad.jsonl", bad);
        let error = Task::gsm8k(&file, None, Gsm8kPrompt::Text).unwrap_err().to_string();
        assert!(error.contains("bad.jsonl, line 1: ") && error.contains(says) && error.contains("a row is"), "{error}");
    }
}

#[test]
fn files_go_with_the_names_of_tasks() {
    let folder = Folder::new();
    let rows = folder.rows("rows.jsonl", 12);
    let name = rows.to_str().unwrap();
    let files = |train, eval| TaskFiles { train, eval };
    assert_eq!(Task::by_name_or_path(name, files(None, None)).unwrap().eval_problems().len(), 1);
    assert_eq!(Task::by_name_or_path(name, files(None, Some(&rows))).unwrap().eval_problems().len(), 12);
    let error = Task::by_name_or_path(name, files(Some(&rows), None)).unwrap_err().to_string();
    assert!(error.contains("is itself the file"), "{error}");
    let gsm8k = gsm8k_fixture();
    let task = Task::by_name_or_path("gsm8k", files(Some(&gsm8k), Some(&gsm8k))).unwrap();
    assert_eq!((task.name(), task.eval_problems().len()), ("gsm8k", 6));
}
