//! Which curves go into which plot.

use super::metrics::{Point, Series};
use super::plot::{Curve, svg};
use super::text::{escape, number};
use std::collections::BTreeSet;

/// A plot of known fields.
struct Plot {
    title: &'static str,
    /// What is said below the title.
    note: &'static str,
    /// Kind of line, field, and the name of the curve.
    fields: &'static [(&'static str, &'static str, &'static str)],
    whole: Option<(f64, f64)>,
}

const SHARE: Option<(f64, f64)> = Some((0.0, 1.0));

const PLOTS: [Plot; 14] = [
    Plot {
        title: "Reward",
        note: "mean of the step",
        fields: &[("grpo", "reward", "reward"), ("grpo", "reward_std", "standard deviation")],
        whole: None,
    },
    Plot {
        title: "Right answers in training",
        note: "share of the completions",
        fields: &[("grpo", "strict", "strict"), ("grpo", "flexible", "flexible")],
        whole: SHARE,
    },
    Plot {
        title: "Right answers on held-out problems",
        note: "share, with its interval",
        fields: &[("accuracy", "strict", "strict"), ("accuracy", "flexible", "flexible")],
        whole: SHARE,
    },
    Plot {
        title: "Loss",
        note: "nats per token",
        fields: &[("train", "loss", "training"), ("eval", "loss", "evaluation")],
        whole: None,
    },
    Plot { title: "Policy loss", note: "", fields: &[("grpo", "loss", "loss")], whole: None },
    Plot {
        title: "Length",
        note: "tokens per completion",
        fields: &[("grpo", "completion_tokens", "tokens")],
        whole: None,
    },
    Plot {
        title: "Cut off, and without a signal",
        note: "share of the completions cut off, of the groups with equal rewards",
        fields: &[("grpo", "truncated", "cut off"), ("grpo", "zero_advantage", "equal rewards")],
        whole: SHARE,
    },
    Plot { title: "Entropy", note: "nats per token", fields: &[("grpo", "entropy", "entropy")], whole: None },
    Plot { title: "KL divergence", note: "from the reference", fields: &[("grpo", "kl", "KL")], whole: None },
    Plot {
        title: "Clipped",
        note: "share of the tokens",
        fields: &[("grpo", "clip_low", "from below"), ("grpo", "clip_high", "from above")],
        whole: None,
    },
    Plot {
        title: "Gradient norm",
        note: "before clipping",
        fields: &[("grpo", "grad_norm", "norm"), ("train", "grad_norm", "norm")],
        whole: None,
    },
    Plot {
        title: "Learning rate",
        note: "",
        fields: &[("grpo", "learning_rate", "rate"), ("train", "learning_rate", "rate")],
        whole: None,
    },
    Plot {
        title: "Time",
        note: "seconds per step",
        fields: &[
            ("grpo", "seconds", "whole step"),
            ("grpo", "rollout_seconds", "completions"),
            ("train", "seconds", "step"),
        ],
        whole: None,
    },
    Plot {
        title: "Perplexity",
        note: "of the evaluation data",
        fields: &[("eval", "perplexity", "perplexity")],
        whole: None,
    },
];

/// Numbers of the lines that are no curves: they are in tables, or say what the line is about.
const NO_CURVES: [(&str, &str); 6] = [
    ("accuracy", "problems"),
    ("accuracy", "samples"),
    ("accuracy", "temperature"),
    ("accuracy", "seconds"),
    ("eval", "tokens"),
    ("eval", "seconds"),
];

/// The parts of the reward, whatever they are called.
const PARTS: &str = "rewards.";

/// The plots, those of unknown fields at the end.
pub(super) fn html(series: &Series) -> String {
    let mut html = String::new();
    let mut shown: BTreeSet<(&str, &str)> = NO_CURVES.into_iter().collect();
    for (index, plot) in PLOTS.iter().enumerate() {
        let mut curves = Vec::new();
        for &(kind, field, name) in plot.fields {
            shown.insert((kind, field));
            push(&mut curves, name, series.of(kind, field).to_vec());
        }
        html.push_str(&figure(plot.title, plot.note, &curves, plot.whole));
        if index == 0 {
            html.push_str(&parts(series));
        }
    }
    html.push_str(&speed(series, &mut shown));
    for (kind, field) in series.names() {
        let is_part = kind == "grpo" && field.starts_with(PARTS);
        if !is_part && !shown.contains(&(kind, field)) {
            let mut curves = Vec::new();
            push(&mut curves, field, series.of(kind, field).to_vec());
            html.push_str(&figure(field, &format!("of the lines of kind {kind}"), &curves, None));
        }
    }
    html
}

fn parts(series: &Series) -> String {
    let mut curves = Vec::new();
    for (kind, field) in series.names() {
        if let Some(name) = field.strip_prefix(PARTS).filter(|_| kind == "grpo") {
            push(&mut curves, name, series.of(kind, field).to_vec());
        }
    }
    figure("Parts of the reward", "mean of the step, without weights", &curves, None)
}

fn speed(series: &Series, shown: &mut BTreeSet<(&str, &str)>) -> String {
    let mut curves = Vec::new();
    for kind in ["grpo", "train"] {
        shown.insert((kind, "tokens"));
        push(&mut curves, "tokens", series.quotient(kind, "tokens", "seconds"));
    }
    figure("Speed", "tokens per second", &curves, None)
}

fn push(curves: &mut Vec<Curve>, name: &str, points: Vec<Point>) {
    if !points.is_empty() {
        curves.push(Curve { name: name.to_owned(), points });
    }
}

/// A plot with its title and legend, or nothing where there are no curves.
fn figure(title: &str, note: &str, curves: &[Curve], whole: Option<(f64, f64)>) -> String {
    if curves.is_empty() {
        return String::new();
    }
    let legend: String = curves.iter().enumerate().map(|(index, curve)| legend(index, curve)).collect();
    format!(
        "<figure>\n<figcaption><b>{}</b> <span>{}</span></figcaption>\n{}\n<ul class=\"legend\">\n{legend}</ul>\n</figure>\n",
        escape(title),
        escape(note),
        svg(title, curves, whole)
    )
}

/// The name of a curve, and where it begins and ends.
fn legend(index: usize, curve: &Curve) -> String {
    let values = match curve.points.as_slice() {
        [first, .., last] => format!("{} → {}", number(first.value), number(last.value)),
        [only] => number(only.value),
        [] => String::new(),
    };
    let key = "<svg class=\"key\" viewBox=\"0 0 22 8\" aria-hidden=\"true\"><path class=\"line\" d=\"M1 4H21\"/></svg>";
    format!("<li class=\"c{}\">{key}{} <span>{values}</span></li>\n", index % 6, escape(&curve.name))
}
