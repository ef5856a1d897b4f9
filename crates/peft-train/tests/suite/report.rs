//! The page of a run.

use peft_train::Error;
use peft_train::report::Report;
use serde_json::json;
use std::fs;
use tempfile::TempDir;

struct Run(TempDir);

impl Run {
    fn new(metrics: &str) -> Self {
        let run = Self(tempfile::tempdir().unwrap());
        run.write("metrics.jsonl", metrics);
        run
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn page(&self) -> String {
        Report::read(self.0.path()).unwrap().to_html()
    }

    fn error(&self) -> String {
        Report::read(self.0.path()).unwrap_err().to_string()
    }
}

/// A run of `steps` steps of reinforcement learning, evaluated before and after.
fn metrics(steps: u32) -> String {
    let accuracy = |step: u32, share: f64| {
        json!({"kind": "accuracy", "step": step, "problems": 200, "samples": 1, "temperature": 0.0, "strict": share,
               "flexible": share + 0.1, "strict_interval": [share - 0.07, share + 0.07],
               "flexible_interval": [share + 0.03, share + 0.17], "seconds": 1.5})
    };
    let step = |step: u32| {
        json!({"kind": "grpo", "step": step, "reward": 0.4, "reward_std": 0.2, "rewards": {"number": 0.4, "<length>": -0.1},
               "strict": 0.4, "flexible": 0.45, "completion_tokens": 5.2, "truncated": 0.0, "entropy": 0.9, "kl": null,
               "clip_low": 0.0, "clip_high": 0.0, "loss": 0.01, "learning_rate": 1e-3, "grad_norm": 0.5,
               "zero_advantage": 0.3, "tokens": 1234, "seconds": 2.0, "rollout_seconds": 1.5, "surprise": step})
    };
    let mut lines = vec![accuracy(0, 0.5)];
    lines.extend((1..=steps).map(step));
    lines.push(accuracy(steps, 0.75));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The pieces of a page between these two strings, which must be there.
fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = page.split_once(start).unwrap_or_else(|| panic!("no {start}"));
    rest.split_once(end).unwrap_or_else(|| panic!("no {end}")).0
}

/// Every element is closed in its order, which a browser would quietly mend.
fn assert_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for piece in page.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("<{piece} is not closed"));
        let name = tag.split([' ', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}> in {piece}"),
            None if name == "!doctype" || name == "meta" || tag.ends_with('/') => {}
            None => open.push(name),
        }
        assert!(!text.contains('>') || open.last() == Some(&"style"), "a stray > in {text:?}");
    }
    assert_eq!(open, [""; 0]);
}

#[test]
fn every_number_has_a_curve_and_evaluations_are_compared() {
    let run = Run::new(&metrics(5));
    run.write(
        "run.json",
        r#"{"task": "sums", "method": {"peft_type": "TINYLORA", "u": 13}, "kl": null, "stop": ["\n"], "none": {}}"#,
    );
    let page = run.page();
    assert_well_formed(&page);
    for title in [
        "Reward",
        "Parts of the reward",
        "Right answers in training",
        "Right answers on held-out problems",
        "Policy loss",
        "Length",
        "Cut off, and without a signal",
        "Entropy",
        "Clipped",
        "Gradient norm",
        "Learning rate",
        "Time",
        "Speed",
        "surprise",
    ] {
        assert_eq!(page.matches(&format!("<b>{title}</b>")).count(), 1, "{title}");
    }
    assert!(!page.contains("KL divergence"), "it never was a number");
    assert!(!page.contains("<b>tokens</b>") && !page.contains("<b>problems</b>"), "these are no curves of their own");
    assert!(page.contains("number <span>0.4 → 0.4</span>") && page.contains("&lt;length&gt; <span>-0.1 → -0.1</span>"));
    assert!(between(&page, "<b>Speed</b>", "</figure>").contains("617 → 617"), "1234 tokens in 2 s");
    let evaluations = between(&page, "<h2>Evaluations</h2>", "</section>");
    assert!(evaluations.contains("held-out problems: 200, completions of each: 1, temperature: 0"), "{evaluations}");
    let strict = between(evaluations, "right answers, strict", "</tr>");
    for part in [
        "50.0 % <small>(43.0 % to 57.0 %)</small> <small>step 0<",
        "75.0 % <small>(68.0 % to 82.0 %)",
        "step 5<",
        "+25.0 points<",
    ] {
        assert!(strict.contains(part), "{part} in {strict}");
    }
    let options = between(&page, "<h2>Options</h2>", "</section>");
    for (name, value) in
        [("task", "sums"), ("method.peft_type", "TINYLORA"), ("method.u", "13"), ("kl", "none"), ("none", "{}")]
    {
        assert!(options.contains(&format!("<th scope=\"row\">{name}</th><td>{value}</td>")), "{name} in {options}");
    }
    assert!(page.contains("5 steps · 6170 tokens · 10 s in steps"));
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let run = Run::new(&metrics(3));
    let page = run.page();
    for part in ["http:", "https:", "//", "url(", "@import", "<script", "<link", "<img", "<iframe", "src=", "href="] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.contains("Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\""));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
    let title = run.0.path().file_name().unwrap().to_str().unwrap();
    assert!(page.contains(&format!("<title>{title}</title>")));
}

#[test]
fn supervised_runs_have_their_curves() {
    let train = |step, loss: f64| {
        format!(
            "{{\"kind\":\"train\",\"step\":{step},\"loss\":{loss},\"learning_rate\":0.001,\"grad_norm\":1.5,\"tokens\":100,\"seconds\":0.5}}\n"
        )
    };
    let eval = |step, loss: f64| {
        format!(
            "{{\"kind\":\"eval\",\"step\":{step},\"loss\":{loss},\"perplexity\":{},\"tokens\":99,\"seconds\":0.5}}\n",
            loss.exp()
        )
    };
    let run = Run::new(&(eval(0, 2.0) + &train(1, 1.9) + &train(2, 1.5) + &eval(2, 1.25)));
    let page = run.page();
    assert_well_formed(&page);
    let loss = between(&page, "<b>Loss</b>", "</figure>");
    assert!(
        loss.contains("training <span>1.9 → 1.5</span>") && loss.contains("evaluation <span>2 → 1.25</span>"),
        "{loss}"
    );
    assert_eq!(page.matches("<figure>").count(), 6, "loss, gradient, rate, time, perplexity, speed");
    let evaluations = between(&page, "<h2>Evaluations</h2>", "</section>");
    assert!(
        evaluations.contains(">-0.75<") && evaluations.contains("7.389") && evaluations.contains("3.49"),
        "{evaluations}"
    );
    assert!(!page.contains("<h2>Options</h2>") && !page.contains("<h2>Completions</h2>"));
}

const HOSTILE: [&str; 7] = [
    "</pre><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"' onload='alert(1)",
    "&lt;b&gt; &amp;",
    "</style></title><!-- ",
    "]]>\u{0}\u{1b}[31m\u{202e}drawkcab\u{feff}\u{7f}",
    "${alert(1)} {{7*7}} <% %>",
];

#[test]
fn completions_cannot_be_markup() {
    let run = Run::new(&metrics(2));
    let completions: Vec<_> = HOSTILE
        .iter()
        .map(|text| json!({"text": text, "reward": 1.0, "advantage": 0.7, "strict": true, "flexible": false, "finish_reason": text}))
        .collect();
    let line =
        |text: &str| json!({"step": 1, "problem": 0, "prompt": text, "answer": text, "completions": completions});
    run.write("completions.jsonl", HOSTILE[..3].iter().map(|text| format!("{}\n", line(text))).collect::<String>());
    run.write("run.json", json!({HOSTILE[0]: HOSTILE[1], "x": {HOSTILE[2]: HOSTILE}}).to_string());
    let name = "<script>alert(2)</script>";
    run.write(
        "metrics.jsonl",
        metrics(2) + &json!({"kind": name, "step": 3, name: 1.5, "rewards": {name: 1}}).to_string(),
    );
    let page = run.page();
    assert_well_formed(&page);
    for part in ["<script", "<img", "<!--", "\u{0}", "\u{1b}", "\u{202e}", "\u{feff}", "\u{7f}"] {
        assert!(!page.contains(part), "{part:?}");
    }
    for part in [
        "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
        "&quot;&#39; onload=&#39;alert(1)",
        "&amp;lt;b&amp;gt; &amp;amp;",
        "]]&gt;&lt;U+0000&gt;&lt;U+001B&gt;[31m&lt;U+202E&gt;drawkcab&lt;U+FEFF&gt;&lt;U+007F&gt;",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn completions_show_prompt_answer_rewards_and_readings() {
    let run = Run::new(&metrics(2));
    let line = json!({"step": 1, "problem": 0, "prompt": "12+34=", "answer": "46", "completions": [
        {"text": "46", "reward": 1.0, "advantage": 0.7, "strict": true, "flexible": true, "finish_reason": "stop"},
        {"text": "it is\n 46", "reward": -0.125, "strict": false, "flexible": true, "finish_reason": "length"},
        {"text": ""},
    ]});
    run.write("completions.jsonl", format!("{line}\n"));
    let page = run.page();
    assert_well_formed(&page);
    let section = between(&page, "<h2>Completions</h2>", "</section>");
    for part in [
        "<details open><summary>Step 1</summary>",
        "<pre class=\"prompt\">12+34=</pre>",
        "<p>The answer: <code>46</code></p>",
        "<tr><td><pre>46</pre></td><td class=\"number\">1</td><td class=\"yes\">right</td><td class=\"yes\">right</td><td>stop</td></tr>",
        "<pre>it is\n 46</pre></td><td class=\"number\">-0.125</td><td class=\"no\">wrong</td><td class=\"yes\">right</td><td>length</td>",
        "<tr><td><pre></pre></td><td class=\"number\"></td><td></td><td></td><td></td></tr>",
    ] {
        assert!(section.contains(part), "{part} in {section}");
    }
}

#[test]
fn long_runs_have_pages_of_bounded_size() {
    let run = Run::new(&metrics(20_000));
    let many: Vec<_> = (0..50).map(|n| json!({"text": "word ".repeat(2000) + &n.to_string(), "reward": 0.5})).collect();
    let line = |step: u32| format!("{}\n", json!({"step": step, "prompt": "p", "completions": many}));
    run.write("completions.jsonl", (1..=40).flat_map(|step| [line(step), line(step)]).collect::<String>());
    let page = run.page();
    assert_well_formed(&page);
    assert!(page.len() < 1_500_000, "{}", page.len());
    assert!(page.contains("<summary>Step 1</summary>") && page.contains("<summary>Step 40</summary>"));
    assert!((3..=8).contains(&page.matches("<details").count()));
    assert!(
        page.contains("<em> … 8001 more characters</em>") && page.contains("<p>42 more completions are not shown.</p>")
    );
}

#[test]
fn faulty_files_are_named_with_their_line() {
    for (line, says) in [
        ("{\"kind\": 1, \"step\": 1}", "has no `kind` that is a text"),
        ("{\"kind\": \"grpo\", \"step\": \"one\"}", "has no `step` that is a number"),
        ("notes", "expected"),
        ("[]", "expected a map"),
    ] {
        let error = Run::new(&format!("{}\n{line}\n", metrics(1))).error();
        assert!(error.contains("metrics.jsonl, line 5: ") && error.contains(says), "{error}");
    }
    for (line, says) in [
        ("{\"prompt\": \"p\", \"completions\": []}", "has no `step`"),
        ("{\"step\": 1, \"completions\": []}", "has no `prompt`"),
        ("{\"step\": 1, \"prompt\": \"p\"}", "has no `completions`"),
        ("{\"step\": 1, \"prompt\": \"p\", \"completions\": [{}]}", "a completion without a `text`"),
    ] {
        let run = Run::new(&metrics(1));
        run.write("completions.jsonl", format!("\n{line}\n"));
        assert!(run.error().contains("completions.jsonl, line 2: ") && run.error().contains(says), "{}", run.error());
    }
    let run = Run::new(&metrics(1));
    run.write("run.json", "{\n\"a\": 1,\n}");
    assert!(run.error().contains("run.json, line 3: trailing comma"), "{}", run.error());
    run.write("run.json", "{}");
    run.write("completions.jsonl", b"{\"step\xff\n");
    assert!(run.error().contains("completions.jsonl, line 1: is not UTF-8 text"), "{}", run.error());
    let run = Run::new("\n");
    assert!(matches!(Report::read(run.0.path()), Err(Error::EmptyDataset(_))));
    fs::remove_file(run.0.path().join("metrics.jsonl")).unwrap();
    assert!(matches!(Report::read(run.0.path()), Err(Error::Io { .. })));
}

/// A run may be looked at while it goes on, or after it was killed.
#[test]
fn a_line_that_is_still_being_written_is_left_out() {
    let whole = metrics(3);
    let run = Run::new(&whole);
    let page = run.page();
    let title = |run: &Run| run.0.path().file_name().unwrap().to_str().unwrap().to_owned();
    let torn = Run::new(&format!("{whole}{{\"kind\": \"grpo\", \"st"));
    torn.write("completions.jsonl", "{\"step\": 1, \"prom");
    assert_eq!(torn.page().replace(&title(&torn), &title(&run)), page);
    let unended = Run::new(whole.trim_end());
    assert_eq!(unended.page().replace(&title(&unended), &title(&run)), page);
}
