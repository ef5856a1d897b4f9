//! What evaluations found before and after, and what a run took.

use super::metrics::{Point, Series};
use super::text::{duration, escape, number, per_cent};

/// The first and the last evaluation as a table, or nothing.
pub(super) fn html(series: &Series) -> String {
    let mut rows = String::new();
    let points = |change: f64| format!("{:+.1} points", 100.0 * change);
    for (field, name) in [("strict", "right answers, strict"), ("flexible", "right answers, flexible")] {
        rows.push_str(&row(name, series.of("accuracy", field), &share, &points));
    }
    let nats = |change: f64| if change > 0.0 { format!("+{}", number(change)) } else { number(change) };
    for (field, name) in [("loss", "loss, nats per token"), ("perplexity", "perplexity")] {
        rows.push_str(&row(name, series.of("eval", field), &|point| number(point.value), &nats));
    }
    if rows.is_empty() {
        return String::new();
    }
    let how = how(series);
    format!(
        "<section><h2>Evaluations</h2>\n{how}<div class=\"wide\"><table class=\"evaluations\">\n\
         <tr><th></th><th>first</th><th>last</th><th>change</th></tr>\n{rows}</table></div></section>\n"
    )
}

fn row(name: &str, points: &[Point], show: &dyn Fn(&Point) -> String, show_change: &dyn Fn(f64) -> String) -> String {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return String::new() };
    let cell = |point: &Point| format!("<td>{} <small>step {}</small></td>", show(point), point.step);
    let (after, change) = if points.len() > 1 {
        (cell(last), show_change(last.value - first.value))
    } else {
        ("<td></td>".to_owned(), String::new())
    };
    format!(
        "<tr><th scope=\"row\">{}</th>{}{after}<td class=\"number\">{change}</td></tr>\n",
        escape(name),
        cell(first)
    )
}

fn share(point: &Point) -> String {
    match point.interval {
        Some((low, high)) => {
            format!("{} <small>({} to {})</small>", per_cent(point.value), per_cent(low), per_cent(high))
        }
        None => per_cent(point.value),
    }
}

/// How answers were asked for at the last evaluation.
fn how(series: &Series) -> String {
    let facts = [("problems", "held-out problems"), ("samples", "completions of each"), ("temperature", "temperature")];
    let said: Vec<String> = facts
        .into_iter()
        .filter_map(|(field, name)| Some(format!("{name}: {}", number(series.of("accuracy", field).last()?.value))))
        .collect();
    if said.is_empty() { String::new() } else { format!("<p>{}</p>\n", said.join(", ")) }
}

/// The run in a few numbers.
pub(super) fn summary(series: &Series) -> String {
    let total = |field: &str| ["grpo", "train"].iter().flat_map(|kind| series.of(kind, field)).map(|p| p.value).sum();
    let (seconds, tokens): (f64, f64) = (total("seconds"), total("tokens"));
    let mut facts = vec![format!("{} steps", series.last_step())];
    if tokens > 0.0 {
        facts.push(format!("{} tokens", number(tokens)));
    }
    if seconds > 0.0 {
        facts.push(format!("{} in steps", duration(seconds)));
    }
    facts.join(" · ")
}
