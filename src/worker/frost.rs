//! Handing frost pictures to a child, which can open no file of ours.

use super::child::Child;
use super::failure::ChildError;
use crate::protocol::{Condition, ConditionKind, Pictures};
use crate::store::Artifacts;
use crate::wire::{Reply, Request};

impl Child {
    /// Makes sure that the child has the pictures that these conditions draw from.
    pub async fn provide_frost(&mut self, conditions: &[Condition], artifacts: &Artifacts) -> Result<(), ChildError> {
        let named = conditions.iter().find_map(|condition| match &condition.kind {
            ConditionKind::Corruption(corruption) => corruption.pictures.as_ref(),
            _ => None,
        });
        let Some(pictures) = named.filter(|&p| *p != Pictures::Procedural && self.frost.as_ref() != Some(p)) else {
            return Ok(());
        };
        let machine = |detail: String| ChildError::Failed { code: "artifact_store".into(), detail };
        let files = artifacts.frost(pictures).await.map_err(|e| machine(format!("the frost pictures: {e}")))?;
        let request = Request::Frost { lengths: files.0.each_ref().map(|file| file.len() as u64) };
        match self.ask(request, &files.0.concat(), |_| {}).await? {
            (Reply::Taken { pictures: taken }, _) if taken == *pictures => {
                self.frost = Some(taken);
                Ok(())
            }
            (Reply::Taken { .. }, _) => {
                Err(machine("the stored frost pictures are not the ones they should be".into()))
            }
            (other, _) => Err(ChildError::Garbage(format!("unexpected answer {other:?}"))),
        }
    }
}
