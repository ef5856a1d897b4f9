//! Groups against a table that Python made.

use crate::support::{json, own, plain};
use peft_tinylora::Groups;

#[test]
fn groups_are_those_of_python() {
    let table = json(own("groups.json"));
    let rows = table.as_array().unwrap();
    assert_eq!(rows.len(), 28 * 9);
    for row in rows {
        let modules = row["modules"].as_u64().unwrap() as usize;
        let tying = row["weight_tying"].as_f64().unwrap();
        let groups = Groups::new(modules, tying);
        let expected: Vec<usize> =
            row["groups"].as_array().unwrap().iter().map(|g| g.as_u64().unwrap() as usize).collect();
        assert_eq!(
            (0..modules).map(|i| groups.of(i)).collect::<Vec<_>>(),
            expected,
            "{modules} modules, tying {tying}"
        );
        assert_eq!(groups.count(), expected.last().unwrap() + 1);
    }
}

#[test]
fn halves_round_to_even() {
    assert_eq!(Groups::new(5, 0.5).count(), 2); // 2.5
    assert_eq!(Groups::new(7, 0.5).count(), 4); // 3.5
    assert_eq!(plain().with_weight_tying(0.25).groups(10).count(), 8); // 7.5
}

#[test]
fn no_modules_is_one_empty_group() {
    assert_eq!(Groups::new(0, 0.0).count(), 1);
}
