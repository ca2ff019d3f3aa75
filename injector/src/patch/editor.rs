//! Edits a document and records each edit as an RFC 6902 operation.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchError, PatchOperation, RemoveOperation};
use serde_json::{Value, json};

/// A document under edit. Paths are relative to the pod or pod template in it.
#[derive(Debug)]
pub(crate) struct Editor {
    document: Value,
    template: Vec<String>,
    operations: Vec<PatchOperation>,
}

impl Editor {
    pub(crate) fn new(document: Value, template: &[&str]) -> Self {
        Self {
            document,
            template: template.iter().map(|&key| key.to_owned()).collect(),
            operations: Vec::new(),
        }
    }

    pub(crate) fn finish(self) -> (Patch, Value) {
        (Patch(self.operations), self.document)
    }

    /// What is there now; `null` where nothing is.
    pub(crate) fn get(&self, path: &[&str]) -> &Value {
        let pointer = self.pointer(path);
        self.document
            .pointer(pointer.as_str())
            .unwrap_or(&Value::Null)
    }

    /// Sets a member of the object at `path`, replacing what was there.
    pub(crate) fn set(&mut self, path: &[&str], key: &str, value: Value) -> Result<(), PatchError> {
        self.ensure(path, json!({}))?;
        self.add(&[path, &[key]].concat(), value)
    }

    /// Inserts into the array at `path`.
    pub(crate) fn insert(
        &mut self,
        path: &[&str],
        index: usize,
        value: Value,
    ) -> Result<(), PatchError> {
        self.ensure(path, json!([]))?;
        self.add(&[path, &[&index.to_string()]].concat(), value)
    }

    /// Appends to the array at `path`.
    pub(crate) fn append(&mut self, path: &[&str], value: Value) -> Result<(), PatchError> {
        self.ensure(path, json!([]))?;
        self.add(&[path, &["-"]].concat(), value)
    }

    /// Takes out what is at `path`.
    pub(crate) fn remove(&mut self, path: &[&str]) -> Result<(), PatchError> {
        let path = self.pointer(path);
        self.perform(PatchOperation::Remove(RemoveOperation { path }))
    }

    /// Makes the last step of `path` exist with an empty value; the steps before it are objects.
    fn ensure(&mut self, path: &[&str], empty: Value) -> Result<(), PatchError> {
        for depth in 1..=path.len() {
            let part = &path[..depth];
            if self.get(part).is_null() {
                let value = if depth == path.len() {
                    empty.clone()
                } else {
                    json!({})
                };
                self.add(part, value)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &[&str], value: Value) -> Result<(), PatchError> {
        let path = self.pointer(path);
        self.perform(PatchOperation::Add(AddOperation { path, value }))
    }

    fn perform(&mut self, operation: PatchOperation) -> Result<(), PatchError> {
        json_patch::patch(&mut self.document, std::slice::from_ref(&operation))?;
        self.operations.push(operation);
        Ok(())
    }

    fn pointer(&self, path: &[&str]) -> PointerBuf {
        PointerBuf::from_tokens(
            self.template
                .iter()
                .map(String::as_str)
                .chain(path.iter().copied()),
        )
    }
}
