//! The copier of `flush` and `batch`, which can be changed meanwhile.

use std::sync::Arc;

use transhume_copy::control::Control;
use transhume_copy::registry::is_for_tests;
use transhume_copy::{SharedCopier, Switch, by_name};
use transhume_region::Reason;

use crate::args::{Bench, What};
use crate::error::CliError;

/// The copier, and the socket at which it can be changed.
pub(crate) struct Chosen {
    pub(crate) copier: SharedCopier,
    _control: Option<Control>,
}

impl Chosen {
    /// What the command line names. Where it asks for a socket, that is served until this is dropped.
    pub(crate) fn make(args: &Bench) -> Result<Self, CliError> {
        let refused = |error: String| CliError::Refused(error);
        let copier =
            by_name(&args.copier, args.threads).map_err(|error| refused(error.to_string()))?;
        if is_for_tests(copier.name()) {
            return Err(refused(format!(
                "copier {} is a software model for tests; no time it takes means anything",
                copier.name()
            )));
        }
        let Some(path) = &args.control else {
            return Ok(Self {
                copier,
                _control: None,
            });
        };
        if args.what == What::Copy {
            return Err(refused(
                "--control is not for bench copy, which compares all copiers".to_owned(),
            ));
        }
        let switch = Arc::new(Switch::new(copier));
        let control = Control::serve(path, Arc::clone(&switch));
        let control = control.map_err(|error| refused(format!("--control: {error}")))?;
        Ok(Self {
            copier: Arc::new(switch.for_reason(Reason::UserCall)),
            _control: Some(control),
        })
    }
}
