//! Learning rates against `transformers.get_scheduler`.

use crate::fixtures;
use peft_train::schedule::{Schedule, ScheduleKind};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    kind: String,
    learning_rate: f64,
    warmup_steps: usize,
    total_steps: usize,
    rates: Vec<f64>,
}

#[test]
fn rates_are_those_of_transformers() {
    for case in fixtures::json::<Vec<Case>>("schedule/cases.json") {
        let kind = case.kind.parse().unwrap();
        let schedule = Schedule::new(kind, case.learning_rate, case.warmup_steps, case.total_steps).unwrap();
        for (step, expected) in case.rates.iter().enumerate() {
            let found = schedule.lr(step);
            assert!((found - expected).abs() <= 1e-15, "{} step {step}: {found} is not {expected}", case.kind);
        }
    }
}

#[test]
fn the_rate_stays_at_its_end_after_the_last_step() {
    let rate = |kind| Schedule::new(kind, 0.5, 2, 6).unwrap().lr(9);
    assert_eq!(rate(ScheduleKind::Linear), 0.0);
    assert_eq!(rate(ScheduleKind::Cosine), 0.0);
    assert_eq!(rate(ScheduleKind::Constant), 0.5);
}

#[test]
fn names_go_both_ways_and_unknown_ones_list_the_known() {
    for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
        assert_eq!(kind.to_string().parse::<ScheduleKind>().unwrap(), kind);
    }
    let error = "polynomial".parse::<ScheduleKind>().unwrap_err().to_string();
    assert!(error.contains("polynomial") && error.contains("linear, cosine"), "{error}");
}

#[test]
fn impossible_schedules_are_refused() {
    for rate in [f64::NAN, f64::INFINITY, -1e-3] {
        let error = Schedule::new(ScheduleKind::Linear, rate, 0, 10).unwrap_err().to_string();
        assert!(error.contains("learning_rate"), "{error}");
    }
    let error = Schedule::new(ScheduleKind::Linear, 1.0, 11, 10).unwrap_err().to_string();
    assert!(error.contains("11") && error.contains("10"), "{error}");
}
