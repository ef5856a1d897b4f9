//! Programs as rewards, kind and hostile. The programs are lines of the shell.
#![cfg(unix)]

use peft_train::reward::{Program, Reward, Sample, Score};
use peft_train::task::{Problem, Prompt};
use serde_json::json;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time enough to start a shell on a busy machine.
const PATIENCE: Duration = Duration::from_secs(8);

fn count(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn scores(program: &Program, completions: &[&str]) -> Vec<Score> {
    let problem = Problem::new(Prompt::Text("p".to_owned()), "46");
    let samples: Vec<_> = completions.iter().map(|completion| Sample::new(&problem, "p", completion, 1)).collect();
    program.score(&samples).unwrap()
}

fn values(program: &Program, completions: &[&str]) -> Vec<f64> {
    let value = |score| match score {
        Score::Value(value) => value,
        Score::Failed(reason) => panic!("{reason}"),
    };
    scores(program, completions).into_iter().map(value).collect()
}

/// Scores a completion by its length, unless it is an order.
const OBEDIENT: &str = r#"
while read -r line; do
    completion=${line#*'"completion":"'}; completion=${completion%%'"'*}
    case $completion in
        hang) sleep 600;;
        deaf) exec 0<&-; sleep 600;;
        mute) exec 1>&-; sleep 600;;
        flood) yes;;
        flood-errors) yes >&2;;
        noise-forever) while :; do :; done;;
        crash) echo "no such number" >&2; exit 3;;
        suicide) kill -9 $$;;
        murder) kill -9 0;;
        garbage) printf 'so \033[31mwhat\n'; continue;;
        bytes) printf '\377\376\n'; continue;;
        nan) echo NaN; continue;;
        infinite) echo '{"reward": 1e999}'; continue;;
        object) echo '{"score": 1}'; continue;;
        silent) continue;;
        many) echo 1; echo 2; continue;;
        late) echo 1; sleep 600;;
        children) sleep 600 & sleep 600 & echo $! > "$PIDS/children"; echo 7; continue;;
        crowd) i=0; while [ $i -lt 40 ]; do sleep 600 & i=$((i+1)); done; echo $! > "$PIDS/crowd"; wait;;
        stubborn) trap '' TERM INT HUP; sleep 600 & echo $! > "$PIDS/stubborn"; wait;;
    esac
    echo "${#completion}"
done
"#;

/// Every hostile completion with a part of what is said of it; `None` where it does no harm.
const ORDERS: [(&str, Option<&str>); 20] = [
    ("hang", Some("did not finish within")),
    ("deaf", Some("did not finish within")),
    ("mute", Some("did not finish within")),
    ("flood", Some("wrote more than 50000 bytes")),
    ("flood-errors", Some("wrote more than 50000 bytes")),
    ("noise-forever", Some("did not finish within")),
    ("crash", Some("ended with exit status: 3: `no such number`")),
    ("suicide", Some("signal: 9")),
    ("murder", Some("signal: 9")),
    ("garbage", Some(r"answered `so \u{1b}[31mwhat`, which is neither")),
    ("bytes", Some("which is neither a number nor {\"reward\": number}")),
    ("nan", Some("answered `NaN`, which is not finite")),
    ("infinite", Some("which is neither")),
    ("object", Some("which is neither")),
    ("silent", Some("gave 0 answers for 1 samples")),
    ("many", Some("gave 2 answers for 1 samples")),
    ("late", Some("did not finish within")),
    ("children", None),
    ("crowd", Some("did not finish within")),
    ("stubborn", Some("did not finish within")),
];

fn obedient(pids: &Path) -> Program {
    Program::shell(&format!("PIDS='{}'; {OBEDIENT}", pids.display()))
        .with_workers(count(12))
        .with_timeout(PATIENCE)
        .with_output_limit(50_000)
}

fn is_alive(pid: &str) -> bool {
    // A zombie that nobody waits for is dead all the same.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        || !Path::new("/proc/self").exists()
            && Command::new("sh").args(["-c", &format!("kill -0 {pid}")]).output().unwrap().status.success()
}

#[test]
fn a_hostile_completion_stops_nothing_but_itself() {
    let dir = tempfile::tempdir().unwrap();
    let program = obedient(dir.path());
    let mut completions = Vec::new();
    for (index, (order, _)) in ORDERS.iter().enumerate() {
        completions.extend([*order, ["x", "yy", "zzz"][index % 3]]);
    }
    let begun = Instant::now();
    let scores = scores(&program, &completions);
    // Eight of them run into their time, twelve at a time.
    assert!(begun.elapsed() < 4 * PATIENCE, "{:?}", begun.elapsed());
    for (index, ((order, expected), pair)) in ORDERS.iter().zip(scores.chunks(2)).enumerate() {
        match (expected, &pair[0]) {
            (Some(part), Score::Failed(reason)) => assert!(reason.contains(part), "{order}: {reason}"),
            (None, Score::Value(value)) => assert_eq!(*value, 7.0, "{order}"),
            (_, other) => panic!("{order}: {other:?}"),
        }
        assert_eq!(pair[1], Score::Value((index % 3 + 1) as f64), "beside {order}");
    }
    for name in ["children", "crowd", "stubborn"] {
        let pid = fs::read_to_string(dir.path().join(name)).unwrap();
        // The kernel takes a moment to bury them.
        let dead = (0..100).any(|_| {
            let alive = is_alive(pid.trim());
            if alive {
                sleep(Duration::from_millis(20));
            }
            !alive
        });
        assert!(dead, "{name} are still alive");
    }
}

#[test]
fn the_score_does_not_depend_on_how_many_run_or_share_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let completions: Vec<String> = (1..24).map(|n| "x".repeat(n)).collect();
    let mut completions: Vec<&str> = completions.iter().map(String::as_str).collect();
    let kind = values(&obedient(dir.path()), &completions);
    assert_eq!(kind, (1..24).map(f64::from).collect::<Vec<_>>());
    // Between them orders that a shared process does not survive, or that shift the answers of those behind them.
    for (position, order) in [(20, "crash"), (13, "many"), (7, "silent"), (2, "nan")] {
        completions.insert(position, order);
    }
    let alone = scores(&obedient(dir.path()).with_workers(count(1)), &completions);
    let failed = |scores: &[Score]| scores.iter().filter(|score| matches!(score, Score::Failed(_))).count();
    assert_eq!(failed(&alone), 4);
    let others: Vec<f64> = alone.iter().filter_map(|s| if let Score::Value(v) = s { Some(*v) } else { None }).collect();
    assert_eq!(others, kind);
    for shared in [2, 3, 9, 100] {
        let program = obedient(dir.path()).with_samples_per_process(count(shared));
        assert_eq!(scores(&program, &completions), alone, "{shared} to a process");
    }
}

#[test]
fn a_shared_process_serves_many_samples() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("starts");
    let program = Program::shell(&format!("echo . >> '{}'; while read -r line; do echo 1; done", log.display()));
    let starts = |program: Program| {
        let _ = fs::remove_file(&log);
        assert_eq!(values(&program.with_timeout(PATIENCE), &["x"; 10]), [1.0; 10]);
        fs::read_to_string(&log).unwrap().lines().count()
    };
    assert_eq!(starts(program.clone()), 10);
    assert_eq!(starts(program.with_samples_per_process(count(4))), 3);
}

#[test]
fn the_program_is_told_everything() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let program = Program::shell(&format!("cat >> '{}'; echo '{{\"reward\": -0.25, \"why\": \"x\"}}'", seen.display()))
        .with_timeout(PATIENCE);
    let fields = json!({"tests": ["a", 1], "prompt": "not this", "completion": "nor this"});
    let problem =
        Problem::new(Prompt::Text("12+34=".to_owned()), "46").with_fields(fields.as_object().unwrap().clone());
    let completion = "4\n6\u{2028}\"\\ \u{0}é";
    let samples = [Sample::new(&problem, "<s>12+34=", completion, 4)];
    assert_eq!(program.score(&samples).unwrap(), [Score::Value(-0.25)]);
    let line = fs::read_to_string(seen).unwrap();
    assert!(line.ends_with('\n') && line.trim_end_matches('\n').lines().count() == 1, "{line}");
    let row: serde_json::Value = serde_json::from_str(&line).unwrap();
    let expected = json!({"prompt": "<s>12+34=", "completion": completion, "answer": "46", "tests": ["a", 1]});
    assert_eq!(row, expected);
}

#[test]
fn a_program_need_not_read_and_may_print_blank_lines() {
    let large = "x".repeat(1 << 20);
    for (line, expected) in [
        ("echo 5", 5.0),
        ("exec 0<&-; echo 5", 5.0),
        ("echo; echo .5; echo ' '", 0.5),
        ("printf 5", 5.0),
        ("cat > /dev/null; printf -- '-5.5e1\\r\\n'", -55.0),
        ("cat > /dev/null; echo 5; echo fine >&2", 5.0),
    ] {
        let program = Program::shell(line).with_timeout(PATIENCE);
        assert_eq!(values(&program, &[&large, "x"]), [expected; 2], "{line}");
    }
}

/// What leaves the process group is out of reach; it costs its own sample its time and no other anything.
#[test]
fn what_leaves_the_group_does_not_hold_up_the_others() {
    if Command::new("setsid").arg("true").status().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let line = r#"read -r line
        case $line in *escape*)
            setsid sh -c 'echo $$ > "$PID"; exec sleep 60' &
            until [ -s "$PID" ]; do :; done
        esac
        echo 1"#;
    let program = Program::shell(&format!("export PID='{}'; {line}", pid.display()));
    let begun = Instant::now();
    let scores = scores(&program.with_timeout(PATIENCE).with_workers(count(2)), &["a", "escape", "b", "c"]);
    let seconds = begun.elapsed();
    let escaped = fs::read_to_string(&pid).unwrap();
    assert!(is_alive(escaped.trim()), "it left the group");
    Command::new("sh").args(["-c", &format!("kill -9 {escaped}")]).status().unwrap();
    assert!(seconds < 3 * PATIENCE, "{seconds:?}");
    assert!(matches!(&scores[1], Score::Failed(reason) if reason.contains("did not finish")), "{scores:?}");
    assert_eq!([&scores[0], &scores[2], &scores[3]], [&Score::Value(1.0); 3]);
}

/// A completion that kills every shell it finds takes the one that kills with it. It looks for those alone, since other tests run
/// beside this one.
#[test]
fn it_recovers_from_the_loss_of_what_ends_processes() {
    let line = r#"read -r line
        case $line in *hunt*)
            for folder in /proc/[0-9]*; do
                if grep -q "^PPid:.*[^0-9]$PPID\$" "$folder/status" && grep -q 'read -r group' "$folder/cmdline"; then
                    kill -9 "${folder#/proc/}"
                fi
            done 2>/dev/null
        esac
        echo 1"#;
    let program = Program::shell(line).with_timeout(PATIENCE).with_workers(count(1));
    let scores = scores(&program, &["a", "hunt", "b"]);
    assert_eq!([&scores[0], &scores[2]], [&Score::Value(1.0); 2]);
}

#[test]
fn a_program_that_cannot_start_is_an_error() {
    let problem = Problem::new(Prompt::Text("p".to_owned()), "46");
    let samples = [Sample::new(&problem, "p", "x", 1)];
    let program = Program::new("/no/such/program", ["--fast"]).with_name("judge");
    assert_eq!(program.name(), "judge");
    let error = program.score(&samples).unwrap_err().to_string();
    assert!(error.starts_with("reward `judge`: cannot start /no/such/program: "), "{error}");
    let no_args: [&str; 0] = [];
    assert!(values(&Program::new("true", no_args).with_timeout(PATIENCE), &[]).is_empty());
    assert_eq!(program.with_on_failure(-1.0).on_failure(), -1.0);
}
