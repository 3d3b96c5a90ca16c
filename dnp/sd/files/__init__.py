"""Reading what strangers give: folders, single files, tensors, and what they are not."""
