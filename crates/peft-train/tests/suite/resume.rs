//! Runs that stop and go on.

use crate::tiny;
use candle_core::{Device, Tensor};
use peft_core::{PeftModel, TensorSource, checkpoint::SafetensorsFile};
use peft_models::CausalLm;
use peft_train::Error;
use peft_train::data::Dataset;
use peft_train::metrics::Metrics;
use peft_train::optim::{OptimizerConfig, SgdConfig};
use peft_train::schedule::ScheduleKind;
use peft_train::sft::{METRICS_FILE, RunOptions, RunSummary, STATE_FILE, SftConfig, Trainer, run};
use serde_json::Value;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Everything that decides about a run.
struct Setup {
    model: fn() -> PeftModel<CausalLm>,
    rows: Vec<Vec<u32>>,
    eval_rows: Vec<Vec<u32>>,
    config: SftConfig,
    save_every: u64,
    eval_every: Option<u64>,
}

impl Setup {
    fn plain() -> Self {
        Self {
            model: || tiny::with_method(tiny::method()),
            rows: tiny::rows(10, 1),
            eval_rows: tiny::rows(4, 9),
            config: tiny::config(),
            save_every: 1,
            eval_every: Some(2),
        }
    }

    fn run(&self, out: &Path, resume: bool, observe: &mut dyn FnMut(&Metrics)) -> Result<RunSummary, Error> {
        let (data, eval_data) = (tiny::dataset(&self.rows), tiny::dataset(&self.eval_rows));
        let mut model = (self.model)();
        let mut trainer = Trainer::new(&mut model, &data, self.config.clone())?;
        let options = self.options(&eval_data, resume);
        run(&mut trainer, out, &options, observe)
    }

    fn options<'a>(&self, eval_data: &'a Dataset, resume: bool) -> RunOptions<'a> {
        let (save_every, eval_every) = (self.save_every, self.eval_every);
        RunOptions { eval_data: Some(eval_data), eval_every, save_every, resume, ..RunOptions::default() }
    }

    fn finish(&self, out: &Path, resume: bool) -> Result<RunSummary, Error> {
        self.run(out, resume, &mut |_| ())
    }

    /// Runs until the line of `step` is written, then stops as if killed.
    fn kill_at(&self, out: &Path, step: u64, resume: bool) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.run(out, resume, &mut |line| {
                if matches!(line, Metrics::Train(line) if line.step == step) {
                    // No panic message: this is a death that tests expect.
                    std::panic::resume_unwind(Box::new("killed"));
                }
            })
        }));
        assert!(outcome.is_err(), "the run ended before step {step}");
    }
}

/// What a run leaves behind, without the times.
fn result(out: &Path) -> (Vec<u8>, Vec<u8>, Vec<Value>) {
    let read = |name: &str| fs::read(out.join(name)).unwrap();
    let metrics = String::from_utf8(read(METRICS_FILE)).unwrap();
    let timeless = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds").unwrap();
        line
    };
    (read("adapter_model.safetensors"), read("adapter_config.json"), metrics.lines().map(timeless).collect())
}

fn timeless(mut summary: RunSummary) -> RunSummary {
    summary.resumed_from = None;
    summary.first.iter_mut().chain(&mut summary.last).for_each(|line| line.seconds = 0.0);
    summary.eval_before.iter_mut().chain(&mut summary.eval_after).for_each(|line| line.seconds = 0.0);
    summary
}

/// Kills a run at every step, and once more on the way, and compares what it ends with.
fn survives_kills(setup: &Setup) {
    let undisturbed = tempfile::tempdir().unwrap();
    let summary = setup.finish(undisturbed.path(), false).unwrap();
    let expected = result(undisturbed.path());
    for step in 1..=setup.config.steps {
        let out = tempfile::tempdir().unwrap();
        setup.kill_at(out.path(), step, false);
        if step + 1 < setup.config.steps {
            setup.kill_at(out.path(), step + 1, true);
        }
        let resumed = setup.finish(out.path(), true).unwrap();
        assert!(result(out.path()) == expected, "killed at step {step}");
        assert_eq!(timeless(resumed), timeless(summary.clone()), "killed at step {step}");
    }
}

#[test]
fn a_resumed_run_ends_with_the_bytes_of_an_undisturbed_one() {
    survives_kills(&Setup::plain());
}

#[test]
fn so_it_does_with_dropout_accumulation_and_a_schedule() {
    let config = SftConfig {
        grad_accum: 3,
        schedule: ScheduleKind::Cosine,
        warmup_steps: 2,
        grad_clip: Some(0.5),
        seed: 3,
        ..tiny::config()
    };
    survives_kills(&Setup { model: tiny::with_dropout, config, ..Setup::plain() });
}

#[test]
fn so_it_does_when_states_are_saved_rarely() {
    for save_every in [4, 100] {
        survives_kills(&Setup { save_every, eval_every: None, ..Setup::plain() });
    }
}

#[test]
fn the_dropout_of_a_run_matters() {
    let [plain, dropped] = [Setup::plain(), Setup { model: tiny::with_dropout, ..Setup::plain() }].map(|setup| {
        let out = tempfile::tempdir().unwrap();
        setup.finish(out.path(), false).unwrap();
        result(out.path())
    });
    assert!(plain.0 != dropped.0);
}

#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let (setup, out) = (Setup::plain(), tempfile::tempdir().unwrap());
    setup.finish(out.path(), false).unwrap();
    let expected = result(out.path());
    let summary = setup.finish(out.path(), true).unwrap();
    assert_eq!(summary.resumed_from, Some(6));
    assert!(result(out.path()) == expected);
}

#[test]
fn a_run_at_a_constant_rate_can_be_prolonged() {
    let setup = |steps| Setup {
        config: SftConfig { steps, schedule: ScheduleKind::Constant, ..tiny::config() },
        ..Setup::plain()
    };
    let [whole, prolonged] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    setup(6).finish(whole.path(), false).unwrap();
    setup(4).finish(prolonged.path(), false).unwrap();
    setup(6).finish(prolonged.path(), true).unwrap();
    assert!(result(whole.path()) == result(prolonged.path()));

    let error = setup(3).finish(prolonged.path(), true).unwrap_err().to_string();
    assert!(error.contains("step 6, beyond the 3"), "{error}");
}

#[test]
fn other_options_are_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    Setup::plain().kill_at(out.path(), 3, false);
    let before = result_files(out.path());
    let with = |config: SftConfig| Setup { config, ..Setup::plain() };
    let longer = SftConfig { steps: 8, ..tiny::config() };
    let changes: [(&str, Setup); 11] = [
        ("steps was 6, now 8", with(longer)),
        ("learning_rate was 0.05, now 0.01", with(SftConfig { learning_rate: 0.01, ..tiny::config() })),
        ("batch_size was 3, now 2", with(SftConfig { batch_size: 2, ..tiny::config() })),
        ("grad_accum was 1, now 2", with(SftConfig { grad_accum: 2, ..tiny::config() })),
        ("seed was 0, now 1", with(SftConfig { seed: 1, ..tiny::config() })),
        ("shuffle was true, now false", with(SftConfig { shuffle: false, ..tiny::config() })),
        ("grad_clip was null, now 1.0", with(SftConfig { grad_clip: Some(1.0), ..tiny::config() })),
        ("data was", Setup { rows: tiny::rows(10, 2), ..Setup::plain() }),
        ("eval_data was", Setup { eval_rows: tiny::rows(3, 9), ..Setup::plain() }),
        ("adapter.u was 13, now 5", Setup { model: || tiny::with_method(tiny::method().with_u(5)), ..Setup::plain() }),
        ("initial_parameters was", Setup { model: tiny::adapted, ..Setup::plain() }),
    ];
    for (expected, setup) in changes {
        let error = setup.finish(out.path(), true).unwrap_err();
        assert!(matches!(error, Error::Resume(_)), "{error}");
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains(&out.path().display().to_string()), "{message}");
    }
    assert!(result_files(out.path()) == before, "a refused run must not write");
}

#[test]
fn another_base_model_is_refused() {
    fn other_base() -> PeftModel<CausalLm> {
        let mut model = tiny::with_method(tiny::method());
        let norm = |path: &str| path == "model.norm";
        model.merge().unwrap();
        let mut base = model.unload().unwrap();
        use peft_core::{Adaptable, WalkMut};
        base.visit_mut(&mut WalkMut::new(&mut |path, host| {
            if norm(path) {
                let weight = (host.base().stored()?.copy()? * 1.5)?;
                let (changed, bias) = (host.base().with_stored(weight), host.bias().cloned());
                host.set_base(changed, bias)?;
            }
            Ok(())
        }))
        .unwrap();
        let mut model = PeftModel::new(base);
        model.add_adapter("default", tiny::method()).unwrap();
        model
    }
    let out = tempfile::tempdir().unwrap();
    Setup::plain().kill_at(out.path(), 3, false);
    let error = Setup { model: other_base, ..Setup::plain() }.finish(out.path(), true).unwrap_err().to_string();
    assert!(error.contains("base was"), "{error}");
}

fn result_files(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn an_interrupted_run_is_not_overwritten_by_accident() {
    let (setup, out) = (Setup::plain(), tempfile::tempdir().unwrap());
    setup.kill_at(out.path(), 3, false);
    let before = result_files(out.path());
    let error = setup.finish(out.path(), false).unwrap_err().to_string();
    assert!(error.contains("stopped after step 2") && error.contains(STATE_FILE), "{error}");
    assert!(result_files(out.path()) == before);
    fs::remove_file(out.path().join(STATE_FILE)).unwrap();
    setup.finish(out.path(), false).unwrap();
    // A finished one is.
    setup.finish(out.path(), false).unwrap();
}

#[test]
fn leftovers_of_a_killed_save_are_removed_and_a_torn_line_is_cut() {
    let (setup, out, whole) = (Setup::plain(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    setup.finish(whole.path(), false).unwrap();
    setup.kill_at(out.path(), 4, false);
    fs::create_dir(out.path().join(".saving-x1")).unwrap();
    fs::write(out.path().join(".saving-x1/adapter_model.safetensors"), b"half").unwrap();
    let metrics = fs::read(out.path().join(METRICS_FILE)).unwrap();
    fs::write(out.path().join(METRICS_FILE), &metrics[..metrics.len() - 5]).unwrap();
    setup.finish(out.path(), true).unwrap();
    assert!(result(out.path()) == result(whole.path()));
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(out.path()), names(whole.path()));
}

#[test]
fn a_broken_state_is_refused_by_name() {
    let (setup, out) = (Setup::plain(), tempfile::tempdir().unwrap());
    setup.kill_at(out.path(), 3, false);
    let path = out.path().join(STATE_FILE);
    let bytes = fs::read(&path).unwrap();
    for broken in [&bytes[..bytes.len() / 2], &bytes[..4], b"not a state"] {
        fs::write(&path, broken).unwrap();
        let error = setup.finish(out.path(), true).unwrap_err().to_string();
        assert!(error.contains("cannot resume") && error.contains(STATE_FILE), "{error}");
    }
}

/// The first step has the rate 0, the second one spoils the parameters.
fn exploding() -> Setup {
    let optimizer = OptimizerConfig::Sgd(SgdConfig::default());
    let config = SftConfig { steps: 8, learning_rate: 3e38, warmup_steps: 3, optimizer, ..tiny::config() };
    Setup { config, eval_every: None, ..Setup::plain() }
}

#[test]
fn the_last_good_state_is_kept_when_the_loss_is_lost() {
    for save_every in [1, 100] {
        let (setup, out) = (Setup { save_every, ..exploding() }, tempfile::tempdir().unwrap());
        let error = setup.finish(out.path(), false).unwrap_err();
        let message = error.to_string();
        let expected = format!("the loss at step 3 is NaN; the last good state is in {}", out.path().display());
        assert_eq!(message, expected);
        let file = SafetensorsFile::open(out.path().join("adapter_model.safetensors")).unwrap();
        for name in file.names() {
            let tensor = file.load(&name, &Device::Cpu).unwrap().unwrap();
            assert!(is_finite(&tensor), "{name} is poisoned");
        }
        // The saved adapter still has a finite loss.
        let mut model = PeftModel::new(tiny::base());
        model.load_adapter("default", out.path(), &tiny::registry()).unwrap();
        let data = tiny::dataset(&tiny::rows(10, 1));
        assert!(peft_train::eval::evaluate(&mut model, &data, 3).is_ok());
        // Resuming leads to the same end, and spoils nothing.
        let before = fs::read(out.path().join("adapter_model.safetensors")).unwrap();
        assert_eq!(setup.finish(out.path(), true).unwrap_err().to_string(), message);
        assert!(fs::read(out.path().join("adapter_model.safetensors")).unwrap() == before);
    }
}

fn is_finite(tensor: &Tensor) -> bool {
    let values = tensor.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values.into_iter().all(f64::is_finite)
}

#[test]
fn nothing_is_written_when_the_first_step_fails() {
    fn poisoned() -> PeftModel<CausalLm> {
        let model = tiny::adapted();
        let var = model.vars().remove(0);
        let poison = vec![f32::NAN; var.elem_count()];
        var.set(&Tensor::from_vec(poison, var.shape(), &Device::Cpu).unwrap()).unwrap();
        model
    }
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    let setup = Setup { model: poisoned, ..Setup::plain() };
    let data = tiny::dataset(&setup.rows);
    let mut model = poisoned();
    let mut trainer = Trainer::new(&mut model, &data, setup.config.clone()).unwrap();
    let error = run(&mut trainer, &out, &RunOptions::default(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::NonFiniteLoss { step: 1, last_good: None, .. }), "{error}");
    assert!(!out.exists());
    // With evaluation data the loss is missed before that.
    let error = setup.finish(&out, false).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("NaN"), "{error}");
    assert!(!out.exists());
}
