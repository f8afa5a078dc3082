//! Images and labels as safetensors arrays.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::array::{Array, Element, IMAGE_NAMES, LABEL_NAMES, found, pick};
use super::{Found, refuse_labels};
use crate::dataset::{DatasetError, Importer, SourceOptions};

pub(crate) fn read(path: &Path, options: &SourceOptions) -> Result<Found, DatasetError> {
    refuse_labels(options, "safetensors")?;
    let bytes = std::fs::read(path).map_err(DatasetError::io(path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| {
        DatasetError::file(path, format!("is not a whole safetensors file ({error}); it may be truncated"))
    })?;
    let names = tensors.names();
    let array = |name: &str| -> Result<Array, DatasetError> {
        let fail = |problem: String| DatasetError::file(path, format!("array {name}: {problem}"));
        let tensor = tensors.tensor(name).map_err(|error| fail(error.to_string()))?;
        Ok(Array {
            element: element(tensor.dtype()).map_err(fail)?,
            big_endian: false,
            shape: tensor.shape().to_vec(),
            data: tensor.data().to_vec(),
        })
    };
    let labels = array(pick(path, &names, &LABEL_NAMES, "labels")?)?;
    found(Importer::Safetensors, path, path, array(pick(path, &names, &IMAGE_NAMES, "images")?)?, labels)
}

fn element(dtype: Dtype) -> Result<Element, String> {
    Ok(match dtype {
        Dtype::U8 => Element::U8,
        Dtype::I8 => Element::I8,
        Dtype::U16 => Element::U16,
        Dtype::I16 => Element::I16,
        Dtype::U32 => Element::U32,
        Dtype::I32 => Element::I32,
        Dtype::U64 => Element::U64,
        Dtype::I64 => Element::I64,
        Dtype::F32 => Element::F32,
        Dtype::F64 => Element::F64,
        other => {
            return Err(format!(
                "{other:?} cannot hold pixels or labels exactly; save images as uint8, labels as int64"
            ));
        }
    })
}
