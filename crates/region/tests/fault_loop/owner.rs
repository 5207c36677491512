//! There are no owners here.

use transhume_engine::{Alone, Folio, FolioOwner, Place, Refused};

#[derive(Debug)]
pub(crate) enum Owner {}

impl FolioOwner for Owner {
    fn try_detach(&self, _folio: Folio) -> Result<(), Refused> {
        match *self {}
    }

    fn detach(&self, _folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        match *self {}
    }

    fn attach(&self, _folio: Folio, _at: Place) {
        match *self {}
    }
}
