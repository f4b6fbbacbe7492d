# From this folder, with LAFR installed; FOLDER holds aligned faces. No file of LAFR changes.
export PYTHONPATH=. LAFR_ADAPTERS=my_adapter
lafr train --config-dir configs +experiment=smoke run_name=mine adapter=mine loss=mine
lafr eval --config-dir configs benchmark=mine data.root=FOLDER metrics=mine model.folder=runs/mine/model
lafr restore photo.jpg -o restored --detector my_detector:Booth
